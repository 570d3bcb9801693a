"""Equations: from functions, reversed in time, without their linear part, and how they are
integrated exactly.
"""
