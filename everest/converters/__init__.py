"""Weights of other programs, translated to the names and settings of everest."""
