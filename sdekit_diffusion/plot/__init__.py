"""Plots of models, samples and training runs, as `from sdekit_diffusion import plot`. matplotlib is
imported when a function is called.

Example:
    >>> from sdekit_diffusion import plot
    >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
    >>> ax = plot.density(law, size=20)
    >>> ax = plot.samples(law.sample(100, seed=0), ax=ax)
"""

from sdekit_diffusion.plot._curves import calibration, loss
from sdekit_diffusion.plot._density import density
from sdekit_diffusion.plot._drawn import samples
from sdekit_diffusion.plot._solves import denoising, trajectories

__all__ = ["calibration", "denoising", "density", "loss", "samples", "trajectories"]
