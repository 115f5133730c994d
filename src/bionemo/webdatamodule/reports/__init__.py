"""A page about a data set.

:mod:`.facts` gathers what there is to tell, with :mod:`.survey` for the data themselves;
:mod:`.page` makes HTML of it, with a module for each group of sections. Nothing here writes a file.
"""
