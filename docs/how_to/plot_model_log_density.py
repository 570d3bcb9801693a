"""
How do I compute the log-likelihood of a point with a confidence interval?
==========================================================================

``sd.log_likelihood`` returns the value and, where the divergence is estimated by random probes,
its standard error and ``interval``. The log-density is that of the model's probability flow, in
nats. Look for the exact values, most of which are within their intervals.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from sdekit import Hutchinson

torch.manual_seed(0)
means = 1.5 * torch.randn(4, 3)
model = sd.GaussianMixture([0.25] * 4, means, [0.3] * 4)  # or your own; here log p is known
x = model.sample(12, seed=0)
likelihood = sd.log_likelihood(model, x, sde="vp", trace=Hutchinson(probes=16, seed=0))
low, high = likelihood.interval(0.95)

fig, ax = plt.subplots(figsize=(5.5, 3.2))
bars = torch.stack([likelihood.value - low, high - likelihood.value])
ax.errorbar(range(12), likelihood.value, bars, fmt="o", ms=3, label="estimate, interval of 95 %")
ax.plot(range(12), model.log_prob(x), "k_", ms=12, label="exact")
ax.set(xlabel="point", ylabel="log p(x)", xticks=range(0, 12, 2))
ax.legend()

# %%
# One point in numbers, and how many intervals contain the exact value:

print(f"log p(x) = {float(likelihood.value[1]):.3f} ± {float(likelihood.stderr[1]):.3f}")
print(f"interval of 95 %: {float(low[1]):.3f} to {float(high[1]):.3f}")
exact = model.log_prob(x)
print(f"exact: {float(exact[1]):.3f}")
print(f"{int(((low < exact) & (exact < high)).sum())} of 12 intervals contain the exact value")

# %%
# **Narrower intervals.** The standard error falls as one over the square root of the number of
# probes. The cost of the divergence grows in proportion.

for probes in (8, 32, 128):
    one = sd.log_likelihood(model, x[:1], sde="vp", trace=Hutchinson(probes=probes))
    print(f"{probes:3} probes: standard error {float(one.stderr[0]):.4f}")

# %%
# **Up to 32 dimensions** the default trace is exact, at the cost of one product per dimension.
# What is left is the error of the solver: lower the tolerance until the value does not change.

default = sd.log_likelihood(model, x, sde="vp").value
careful = sd.log_likelihood(model, x, sde="vp", method=sd.AdaptiveFlow(1e-6, 1e-6)).value
print(f"largest change: {float((default - careful).abs().max()):.1e} nats")

# %%
# **Pitfalls.** The interval covers the probes, not the solver and not a wrong network. With fewer
# than four probes it is Student's, and can be too narrow. The value is a density in the units that
# the model uses: subtract ``model.scale.log_volume(shape)`` for those of the data. For images of
# pixel levels use bits per dimension (:doc:`plot_model_bits_per_dim`).
#
# Reference: :doc:`likelihoods </likelihood>`.
