"""Checkpoints of other programs: read without running them, recognised, mapped to ours."""
