"""Tar shards on disk: writing, publishing, indexing, reading, verifying."""
