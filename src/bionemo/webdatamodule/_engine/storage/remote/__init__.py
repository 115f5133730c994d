"""Shards behind URLs: what is there, which pieces come when, and what is kept of them."""
