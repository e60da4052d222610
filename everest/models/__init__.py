"""Encoder, masked autoencoder, classifier, and their cost."""
