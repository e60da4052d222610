"""The training engine: plan, optimizer, state, resume."""
