"""Encoder, masked autoencoder, classifier, and what they cost."""
