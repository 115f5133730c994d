"""Decoding by comparison with an accepted pickle.

Review in this order:

1. ``program``: a traced pickle as a tree;
2. ``trace``: which pickles can be traced, and what of them is data; soundness is decided here;
3. ``rows``: comparing many streams at once;
4. ``values``: making values of rows;
5. ``template``: compiling a program into the layout of its rows and what makes their values;
6. ``collate``: copying the memory of many rows straight into a batch.

Each imports only those before it; the rules that keep this sound are in ``codec`` above.
"""
