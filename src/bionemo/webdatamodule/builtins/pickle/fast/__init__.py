"""Decoding by comparison with an accepted pickle."""
