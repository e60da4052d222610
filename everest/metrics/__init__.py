"""Numbers from answers and truths, with intervals."""
