"""Solves: fixed grids, adaptive steps, gradients through both, and what a solve returns."""
