"""The cost of a run, and the checks of a machine."""
