"""
How do I inpaint an image?
==========================

.. index:: ! RePaint

Give the known pixels as an observation through ``sd.Mask``, and draw from the posterior: each
sample is one possible completion. The mask is True where a pixel is known. Look for the missing
half, in which the samples differ.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

# sphinx_gallery_start_ignore
import sys

sys.path.append(sys.path[0] + "/../examples")  # networks.py, where this is run by hand
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

model, data = digits()  # a network of 8 x 8 digits
model = model.unconditional()
image = data.scale.encode(data.test[3:4]).float()
known = torch.ones(1, 8, 8, dtype=torch.bool)
known[:, :, 4:] = False  # the right half is missing

mask = sd.Mask(known)
observation = sd.LinearObservation(mask, mask(image)[0], covariance=0.3**2)
posterior = sd.sample_posterior(model, observation, 512, particles=512, steps=25, seed=0)
completions = posterior.resampled(6, seed=0)

damaged = torch.where(known, image, torch.tensor(0.0))
fig, axes = plt.subplots(1, 8, figsize=(7, 1.2))
row(axes, pixels(torch.cat([image, damaged, completions]), data))
for ax, name in zip(axes, ("truth", "known", "samples"), strict=False):
    ax.set_title(name, fontsize=9)

# %%
# The result has weights. ``families`` is the effective number of particles at the start from which
# the samples descend: below four, a warning asks for more particles.

print(f"effective samples {float(posterior.ess):.0f}, families {float(posterior.families):.1f}")

# %%
# **The standard deviation** of each pixel measures how uncertain it is:

inside = float(posterior.std()[known].mean())
outside = float(posterior.std()[~known].mean())
print(f"standard deviation of known pixels {inside:.2f}, of missing ones {outside:.2f}")

# %%
# **Faster, without weights.** ``sd.RePaint`` replaces the known pixels in every step and returns to
# higher noise in between; ``sd.Inpainted`` replaces them without returning. Both are approximations
# whose error is not known. Both keep the known pixels, ``sd.Inpainted`` with the small noise at
# which the solve ends. Look for how well the missing half continues the known one.

method = sd.RePaint(image, known, resamplings=3, jump=5, steps=25)
repainted = sd.sample(model, 7, method=method, seed=0)
replaced = sd.sample(sd.Inpainted(model, image, known), 7, steps=25, seed=0)
fig, axes = plt.subplots(2, 8, figsize=(7, 2.1))
row(axes[0], pixels(torch.cat([damaged, repainted]), data), "RePaint")
row(axes[1], pixels(torch.cat([damaged, replaced]), data), "Inpainted")

# %%
# **Pitfalls.** The noise of the observation is part of the question: with a small ``covariance``
# few particles fit, and the weights degenerate. y has the shape that the mask returns, hence
# ``mask(image)[0]``. Values are in the model's scale, here from -1 to 1.
#
# Reference: :doc:`posteriors </posteriors>`, :doc:`editing </editing>`.
