"""The demo: videos rendered here, and the whole path from pre-training to evaluation."""
