"""The command line: one module for each command, a folder for a large one."""
