"""The default loader: torch worker processes with shared memory."""
