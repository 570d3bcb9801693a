"""Likelihoods of models: bits per dimension, the variational bound, encodings."""
