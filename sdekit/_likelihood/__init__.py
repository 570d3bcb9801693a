"""Likelihoods of flows, and the divergences that they integrate."""
