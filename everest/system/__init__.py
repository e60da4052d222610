"""Files, locks, storage, weights files, run folders, processes and devices."""
