"""Samples from models: the call, methods, grids, and settings of published samplers."""
