"""The command line of everest."""
