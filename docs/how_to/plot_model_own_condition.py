"""
How do I write my own guidance or condition?
============================================

A model is its denoiser, so a model made from another is a class with one method, ``predict_data``.
This one has a density proportional to p(x) exp(c x), where p is that of the given model; every
sampler and the likelihood take it. Look for the right mode, which has more of the samples after the
reweighting.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from sdekit.elementary import broadcast
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tilted(sd.AbstractDerivedModel):
    """The density p(x) exp(c x), normalised: the factor moves u by c b^2 / a."""

    c: Tensor = sd.per_sample()  # noqa: RUF009 - one row for each sample, (n, d)

    def predict_data(self, l, u):
        shift = broadcast(sd.noise_scale(l) ** 2 / sd.signal_scale(l), u) * self.c
        return self.model.predict_data(l, u + shift)


model = sd.GaussianMixture([0.7, 0.3], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.1])  # or your own
c = torch.tensor([1.0, 0.0])
tilted = Tilted(model, c=c.expand(1000, 2))
fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharex=True, sharey=True)
for ax, one, title in ((axes[0], model, "the model"), (axes[1], tilted, "reweighted")):
    x = sd.sample(one, 1000, sde="vp", steps=30, seed=0)
    share = float((x[:, 0] > 0).float().mean())
    ax.plot(*x.T, ".", ms=3)
    ax.set(title=f"{title}: {share:.0%} have $x_1$ > 0", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")

# %%
# Here the exact answer is known: a component of weight w, mean m and variance v becomes one of
# weight :math:`w e^{c m + v c^2 / 2}` and mean m + v c.

weights = torch.tensor([0.7, 0.3]) * torch.exp(torch.tensor([-1.0, 1.0]))
print(f"weight of the right component {float(weights[1] / weights.sum()):.3f}")
print(f"mean of x_1 there: sampled {float(x[x[:, 0] > 0, 0].mean()):.3f}, exact 1.100")

# %%
# **What predict_data receives.** ``u`` is :math:`a x_0 + b \varepsilon` with :math:`a^2 + b^2 =
# 1`, and ``l`` is :math:`\log(a / b)`, a number or one per sample. ``sd.signal_scale(l)`` is a,
# ``sd.noise_scale(l)`` is b, and ``broadcast`` shapes a coefficient for a product with u. The
# method returns the mean of :math:`x_0` given u. A field declared with ``sd.per_sample()`` has one
# entry per sample, and batches take the right rows.
#
# **The likelihood** follows from the same class:

points = x[:5]
normaliser = (weights.double().sum() * torch.tensor(0.05).double().exp()).log()
exact = model.log_prob(points) + points @ c - normaliser
estimate = sd.log_likelihood(Tilted(model, c=c.expand(5, 2)), points, sde="vp").value
print(f"largest error of log p: {(estimate - exact).abs().max():.3f}")

# %%
# The prior at the noisy end is centred at the mean of the model, which the new law does not have:
# most of this error comes from there. A class that defines ``data_mean``, the mean of its law, has
# less.
#
# **Clipped predictions**, which some image models need, are another such class:


@dataclass(frozen=True, eq=False)
class Clipped(sd.AbstractDerivedModel):
    """The model with its estimate of the data kept within -1 and 1."""

    def predict_data(self, l, u):
        return self.model.predict_data(l, u).clamp(-1.0, 1.0)


x = sd.sample(Clipped(model), 1000, sde="vp", steps=30, seed=0, denoise=True)
print("largest coordinate", float(x.abs().max()))

# %%
# **Pitfalls.** A network is accurate only near the points of its training run: a large c moves u
# away from them. For x given an observation y use ``sd.Observation`` and weights, which make
# approximations exact (:doc:`plot_model_own_operator`).
#
# Reference: :doc:`posteriors </posteriors>`, :doc:`contributing </contributing>`.
