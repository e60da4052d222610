"""Which videos and labels there are: lists, folders, classes, groups, shards."""
