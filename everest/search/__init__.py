"""More like this: nearest clips, near-duplicates, and what to label next."""
