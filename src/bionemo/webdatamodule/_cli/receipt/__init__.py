"""``webdatamodule receipt``."""
