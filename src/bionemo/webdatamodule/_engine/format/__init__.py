"""Bytes on disk: manifests, indexes and tar archives."""
