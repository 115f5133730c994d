"""From shards to samples by number."""
