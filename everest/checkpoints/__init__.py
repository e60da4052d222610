"""Weights in and out: load, convert, export."""
