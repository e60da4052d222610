"""Finds the clips that are most similar to an example."""
