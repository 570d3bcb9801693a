"""Diffusions x_t = alpha(t) x_0 + sigma(t) eps, one family a file."""
