"""``webdatamodule doctor``."""
