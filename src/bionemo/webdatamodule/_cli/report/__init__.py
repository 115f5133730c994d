"""``webdatamodule report``."""
