"""Where shards are: local and remote targets, downloads, caches, locks."""
