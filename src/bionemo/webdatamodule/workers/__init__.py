"""Worker processes: how they start, what crosses to the main process and how, and what is said when one fails.

```text
loader      the loader around torch's worker processes
starting    the start method, and what must pickle for it
transport   packs any value for the way to the main process
outofband   finds the memory of tensors and arrays inside a value
blocks      shared memory that a value's tensors cross in
recycling   memory of batches in the main process, used again
board       what each worker is doing
failures    errors of workers, raised whole in the main process
```
"""
