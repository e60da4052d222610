"""The recipes that ship with everest: one YAML file for each data set and method."""
