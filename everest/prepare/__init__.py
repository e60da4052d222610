"""A data set made usable: lists, splits, checks, encoding, shards."""
