"""Noise: the counter-based generator, white noise on a grid, one Brownian path."""
