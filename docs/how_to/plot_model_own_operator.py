"""
How do I solve an inverse problem with my own operator?
=======================================================

.. index:: ! deblurring, ! super resolution, ! MRI, ! tomography

An image is restored from what an instrument measured. Write the instrument as a function of a batch
that is linear in each image, and give it to ``sd.LinearObservation`` with the noise. The adjoint is
computed by autograd. Look for the mean of the posterior, which is nearer to the truth than the
least-squares solution.

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
image = data.scale.encode(data.test[8:9]).float()


def projections(x):
    """Sums over rows, columns and both diagonals: (batch, 1, 8, 8) to (batch, 46)."""
    shifted = torch.nn.functional.pad(x[:, 0], (0, 8)).flatten(1)[:, :-8].reshape(-1, 8, 15)
    mirrored = torch.nn.functional.pad(x[:, 0].flip(2), (0, 8)).flatten(1)[:, :-8]
    diagonals = [shifted.sum(1), mirrored.reshape(-1, 8, 15).sum(1)]
    return torch.cat([x[:, 0].sum(1), x[:, 0].sum(2), *diagonals], dim=1)


y = projections(image)[0] + 1.0 * torch.randn(46, generator=torch.Generator().manual_seed(0))
observation = sd.LinearObservation(projections, y, covariance=1.0)
posterior = sd.sample_posterior(model, observation, 512, particles=512, steps=25, seed=0)

A = projections(torch.eye(64).reshape(64, 1, 8, 8)).T
least_squares = torch.linalg.lstsq(A, y, driver="gelsd").solution.reshape(1, 1, 8, 8)
images = [image, least_squares, posterior.mean()[None], posterior.resampled(4, seed=0)]
fig, axes = plt.subplots(1, 7, figsize=(7, 1.4))
row(axes, pixels(torch.cat(images), data))
for ax, name in zip(axes, ("truth", "least squares", "mean", "samples"), strict=False):
    ax.set_title(name, fontsize=8)

# %%
# The errors of both, beside the standard deviation of a pixel under the posterior:


def error(x):
    return float((x - image).square().mean().sqrt())


print(f"least squares {error(least_squares):.3f}, posterior mean {error(posterior.mean()):.3f}")
print(f"standard deviation of the posterior {float(posterior.std().square().mean().sqrt()):.3f}")

# %%
# **Check the fit.** Residuals of the samples should have the size of the noise, here 1:

residuals = projections(posterior.resampled(100, seed=1)) - y
print(f"root mean square residual {float(residuals.square().mean().sqrt()):.2f}")

# %%
# **Known operators.** ``Mask``, ``Downsampling``, ``Blur``, ``FourierSampling``, ``Radon``, or a
# matrix for the flattened image. A pair (function, adjoint) avoids autograd.
#
# **Not linear?** ``sd.Observation(y, log_likelihood)`` takes any differentiable log p(y | x), such
# as that of Poisson counts. A function that is not linear is refused by ``LinearObservation``:

try:
    sd.sample_posterior(model, sd.LinearObservation(lambda x: x[:, 0].abs(), y[:8], 0.1), 4)
except ValueError as problem:
    print(problem)

# %%
# Reference: :doc:`posteriors </posteriors>`.
