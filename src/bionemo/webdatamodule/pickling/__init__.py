"""The parts of the pickle codec; :mod:`bionemo.webdatamodule.pickles` and ``templates`` are its two doors.

Reading, in the order in which to review it: ``checks`` (tokens and limits), ``machine`` and ``opcodes`` (how a pickle
is followed), ``python_types``, ``arrays`` and ``tensors`` (what it may name), ``torch_files`` (what ``torch.save``
puts around one).
Writing: ``canonical``; converting many of one kind: ``recode`` and ``kinds``.
Reading many of one kind: ``programs`` and ``tracing`` (what a pickle does, as a tree), ``holes`` and ``grids`` (the
tree as a template, and how many streams are compared with it at once), ``builders`` and ``columns`` (their values, and
batches of them).
"""
