"""``webdatamodule plugins``: a module for the command, one for its checks, one for the options of a component."""
