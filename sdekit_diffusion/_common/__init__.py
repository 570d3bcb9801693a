"""What every module may need: checks of arguments, and which random numbers belong to what."""
