"""The unpickler that runs no code.

Review in this order:

1. ``tokens``: what a name in a pickle becomes;
2. ``budget``: the memory and work that a pickle may ask for;
3. ``python_types``, ``numpy_types``: a checking constructor for each name;
4. ``names``: which names are known or allowed, and ``refusal``: the error for all others;
5. ``unpickler``: the stack, the memo, calls and states; its docstring has the rules;
6. ``opcodes``: a few lines for each opcode, and the loop;
7. ``torch_types``, ``torch_files``: the same for tensors and files of ``torch.save``;
8. ``formats``: other formats, by their first bytes.

Each imports only those before it, except that ``names`` imports ``torch_types`` when a pickle first names torch.
"""
