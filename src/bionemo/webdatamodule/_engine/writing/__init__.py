"""Conversion: from names to published shards."""
