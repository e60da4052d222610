"""A trained model on any videos: predictions, features, timelines and their scores."""
