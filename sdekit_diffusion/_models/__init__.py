"""Models: networks, mixtures, checkpoints, and checks of both."""
