"""A recipe for these videos and this machine, each value with its reason."""
