"""Reads exactly the requested frames of a video file."""
