"""Make a data set usable: lists from its archive, splits, a check of every file, numbers about it."""
