"""Exactly the requested frames of a video file."""
