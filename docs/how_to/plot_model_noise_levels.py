r"""
How do I choose the weight of the loss and its noise levels?
============================================================

The loss is the expectation of :math:`w(l)\, |\hat\varepsilon - \varepsilon|^2` over random noise
levels :math:`l = \log(\alpha s / \sigma)`. ``Recipe(weighting=...)`` is w, with a ``density`` of l
that goes with it. Where their product is large the network is trained most. Look for the noise
levels that each recipe emphasises, on the right in units of the error of the velocity: with
``"likelihood"`` small noise counts most, with ``"min_snr"`` hardly at all.
"""

import math

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

vp = sd.VPSDE()
quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharex=True)
for name in ("velocity", "plain", "likelihood", "edm", "min_snr", "sigmoid"):
    weight = sd.WEIGHTS[name]
    times = sd.DENSITIES[weight.density].times(vp, quantiles, (-5.0, 7.0), 1.0)
    l = (vp.alpha(times) / vp.sigma(times)).log()
    density, edges = torch.histogram(l, 120, range=(-5.0, 7.0), density=True)
    centres = (edges[1:] + edges[:-1]) / 2
    axes[0].plot(centres, density, lw=1, label=f"{name}: {weight.density}")
    product = density * weight.weight(centres) / (1 + (-2 * centres).exp())
    axes[1].plot(centres, product / product.sum() / 0.1, lw=1)
    small = float(product[centres > math.log(10.0)].sum() / product.sum())
    print(f"{name:10} {small:4.0%} of it where the noise is below a tenth of the data")
axes[0].set(xlabel="l, from much noise to little", title="density of l")
axes[1].set(xlabel="l, from much noise to little", title="weight x density, area 1")
axes[0].legend(fontsize=7)

# %%
# On the left, the curves of ``"plain"`` and ``"min_snr"`` coincide, and those of ``"likelihood"``
# and ``"sigmoid"``.
#
# **Which to take.** The default weight depends on what the network predicts; for one that predicts
# the velocity it is ``"velocity"``. On three data sets no other was better on all. Take others to
# repeat a paper's recipe, or where the likelihood counts:

recipes = {
    "the default": sd.Recipe(steps=1000),
    "as EDM": sd.Recipe(steps=1000, weighting="edm"),
    "levels of Stable Diffusion 3": sd.Recipe(
        steps=1000, weighting="plain", density=sd.LogNormal(0.0, 1.0)
    ),
    "a number of your own": sd.Recipe(steps=1000, weighting=sd.MinSNR(gamma=1.0)),
}

# %%
# **Stratified levels**, ``Recipe(stratified=True)``, spread the noise levels evenly over the
# samples of a batch. The loss of held-out images then varies less; the gradient hardly does.
#
# **Pitfalls.** Losses of different weights or densities cannot be compared: compare samples or
# ``sd.bits_per_dim``. A network that predicts the data needs ``"balanced"``, its default: with
# ``"plain"`` the lowest noise levels dominate.
#
# Reference: :doc:`training </training>`.
