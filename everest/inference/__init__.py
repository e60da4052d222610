"""A trained model on videos: classes, features, accuracy, probes, report."""
