"""The videos and labels of a data set: lists, folders, classes, groups, shards."""
