"""Datasets and loaders that follow a plan, progress, resume."""
