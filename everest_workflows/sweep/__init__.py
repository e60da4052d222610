"""Sweeps: several arms of a recipe over several seeds, with statistics."""
