"""Checks of arguments: numbers, and names with suggestions for error messages."""
