"""The networks: encoder, masked autoencoder, classifier."""
