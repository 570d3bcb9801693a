"""Training: recipes, losses, the loop, runs in folders."""
