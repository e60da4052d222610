"""More like this: the clips that are nearest to an example."""
