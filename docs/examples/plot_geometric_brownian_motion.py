r"""
Geometric Brownian motion
=========================

.. index:: ! option prices, ! Black Scholes

The price of Black and Scholes' model, :math:`\mathrm{d}S = \mu S\,\mathrm{d}t + \sigma S\,
\mathrm{d}W`, whose logarithm is normal. Left: paths, with the exact mean and the exact interval of
90 %. Right: prices after a year. Look for the histogram on the exact density, which is skewed: the
mean, dashed, is right of the peak.
"""

import math

import matplotlib.pyplot as plt
import sdekit
import torch

mu = 0.08
sigma = 0.4
price = sdekit.SDE(lambda t, x: mu * x, lambda t, x: sigma * x, "diagonal")
start = torch.full((20_000, 1), 100.0, dtype=torch.float64)
solution = sdekit.solve(
    price, start, sdekit.uniform(0.0, 1.0, 50), solver=sdekit.Milstein(),
    noise=sdekit.WhiteNoise(0), save="all",
)  # fmt: skip
t = solution.ts
paths = solution.xs[..., 0]


def quantile(p):
    """Of the exact law, at all times."""
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(p))
    return 100 * torch.exp((mu - sigma**2 / 2) * t + sigma * t.sqrt() * z)


mean = 100 * torch.exp(mu * t)
s = torch.linspace(20.0, 350.0, 300)
exact = torch.distributions.LogNormal(math.log(100) + mu - sigma**2 / 2, sigma)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.3))
axes[0].plot(t, paths[:, :15], color="C0", lw=0.6)
axes[0].fill_between(t, quantile(0.05), quantile(0.95), color="0.9", label="90 %")
axes[0].plot(t, mean, "k--", lw=1, label="mean")
axes[0].set(xlabel="years", ylabel="price")
axes[0].legend(loc="upper left")
bins = torch.linspace(20.0, 350.0, 81).tolist()
axes[1].hist(paths[-1].numpy(), bins, density=True, color="C0", alpha=0.5, label="solved")
axes[1].plot(s, exact.log_prob(s).exp(), "k", lw=1, label="exact")
axes[1].axvline(float(mean[-1]), color="k", ls="--", lw=1)
axes[1].set(xlabel="price after a year", ylabel="density")
axes[1].legend()
