"""Metrics from outputs and ground truth, with confidence intervals."""
