"""Make a data set usable: lists, splits, a check of every file, numbers about it, files read fast."""
