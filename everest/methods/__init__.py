"""Which tokens are kept, and what is predicted."""
