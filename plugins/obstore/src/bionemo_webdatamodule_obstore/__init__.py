"""Object stores for bionemo-webdatamodule through obstore.

It imports nothing, since a helper process imports it too, and the first batch waits until that has started.
"""
