"""Damaged and nonsensical input for the commands: recipes, lists, weights, states, run folders, videos.

Every case is known by its kind, seed and index, and is the same on every run:

    python -m tests.fuzz                          # all kinds in full, in two processes
    python -m tests.fuzz videos --seed 3 --index 17
"""
