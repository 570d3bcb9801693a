"""What every module may need: properties that override attributes, and names for messages."""
