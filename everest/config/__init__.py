"""Recipes: YAML and `--set` in, strict frozen settings out."""
