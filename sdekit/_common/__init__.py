"""Properties that override attributes, and suggestions of names for error messages."""
