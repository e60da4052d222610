"""Figures of masks, frames and curves."""
