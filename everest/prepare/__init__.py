"""Prepares data sets: lists, splits, checks, encoding, shards, window lists."""
