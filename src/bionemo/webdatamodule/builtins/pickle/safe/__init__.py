"""The unpickler that runs no code."""
