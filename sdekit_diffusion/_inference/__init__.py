"""What a model says about data: likelihoods, latents, classes, posteriors."""
