"""How data sets are published: a reader for the annotations of each, and what to do with plain folders."""
