"""From lists of videos to clips: reading, choosing frames, cropping, batching."""
