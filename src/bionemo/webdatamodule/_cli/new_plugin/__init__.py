"""``webdatamodule new-plugin``."""
