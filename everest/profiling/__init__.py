"""What a run costs; what is wrong with a machine."""
