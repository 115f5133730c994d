"""The default pickle plugin: the writer ``pickles`` and the codec ``pickle``."""
