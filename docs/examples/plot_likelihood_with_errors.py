"""
Log-likelihoods with error bars
===============================

Hutchinson's estimator of the divergence is random, and every value comes with a standard error.
With four probes the bars are wide, and with 64 narrow. Look for intervals without 0, which are red:
of 60 intervals of 95 %, about 57 should contain the exact value.
"""

import matplotlib.pyplot as plt
import sdekit
import sdekit_diffusion as sd
import torch

torch.manual_seed(1)
means = 1.5 * torch.randn(4, 3)
law = sd.GaussianMixture(torch.full((4,), 0.25), means, torch.full((4,), 0.3))
x = law.sample(60, seed=0)
exact = law.log_prob(x)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
for ax, probes in zip(axes, (4, 64), strict=True):
    estimate = sd.log_likelihood(law, x, sde="vp", trace=sdekit.Hutchinson(probes=probes))
    low, high = estimate.interval(0.95)
    inside = (low <= exact) & (exact <= high)
    bars = torch.stack([estimate.value - low, high - estimate.value])
    for mask, color in ((inside, "C0"), (~inside, "C3")):
        values = (estimate.value - exact)[mask]
        where = torch.arange(60)[mask]
        ax.errorbar(where, values, bars[:, mask], fmt=".", color=color, lw=1, ms=3)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(title=f"{probes} probes: {int(inside.sum())} of 60 inside", xlabel="point")
axes[0].set_ylabel("log p(x) minus the exact value")
