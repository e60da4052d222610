"""A trained model on any videos: predictions and features."""
