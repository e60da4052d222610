"""Sweeps: several variants of a recipe over several seeds, with statistics."""
