"""Recordings: windows, timelines, bouts, their scores and figures, and time budgets."""
