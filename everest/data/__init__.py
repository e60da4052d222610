"""Lists, samples, views, batches."""
