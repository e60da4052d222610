"""From samples to batches: frame sampling, crops, augmentation, worker processes."""
