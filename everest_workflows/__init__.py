"""What people do with the toolkit: train projects, sweeps, recordings with annotations."""
