"""Numbers from outputs and ground truth, with intervals."""
