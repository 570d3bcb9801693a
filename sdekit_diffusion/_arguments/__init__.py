"""Checks of arguments, and which of them can be keys of caches."""
