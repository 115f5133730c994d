"""``webdatamodule bench``."""
