"""The accuracy of a classifier, and its report."""
