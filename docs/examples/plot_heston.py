r"""
Heston's model of a price
=========================

.. index:: ! option prices, ! stochastic volatility

The variance of the price is itself random,

.. math:: \mathrm{d}S = r S\,\mathrm{d}t + \sqrt{v}\,S\,\mathrm{d}W_1, \qquad
   \mathrm{d}v = \kappa (\theta - v)\,\mathrm{d}t + \xi \sqrt{v}\,\mathrm{d}W_2,

with correlation :math:`\rho` of the noises. Left: five paths of the price. Right: the implied
volatility of calls. Look for its fall with the strike, which a model with constant variance, the
grey line and :doc:`plot_geometric_brownian_motion`, does not have.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import sdekit
import torch
from scipy.optimize import brentq
from scipy.stats import norm

r = 0.02
kappa = 2.0
theta = 0.04
xi = 0.6
rho = -0.7


def drift(t, x):
    v = x[:, 1].clamp_min(0)
    return torch.stack([r - 0.5 * v, kappa * (theta - v)], dim=1)  # of log S, and of v


def diffusion(t, x):
    root = x[:, 1].clamp_min(0).sqrt()
    zero = torch.zeros_like(root)
    rows = [root, zero], [xi * rho * root, xi * math.sqrt(1 - rho**2) * root]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


heston = sdekit.SDE(drift, diffusion, "general", noise_size=2)
n = 40_000
x0 = torch.tensor([[math.log(100.0), theta]], dtype=torch.float64).expand(n, 2)
solution = sdekit.solve(
    heston, x0, sdekit.uniform(0.0, 1.0, 100), solver=sdekit.EulerMaruyama(),
    noise=sdekit.WhiteNoise(0), save=np.linspace(0.0, 1.0, 101),
)  # fmt: skip
price = solution.xs[..., 0].exp()

strikes = np.linspace(70.0, 130.0, 13)
payoffs = [math.exp(-r) * (price[-1] - k).clamp_min(0).mean() for k in strikes]


def black_scholes(k, volatility):
    d = (math.log(100.0 / k) + r) / volatility + volatility / 2
    return 100.0 * norm.cdf(d) - k * math.exp(-r) * norm.cdf(d - volatility)


implied = [
    brentq(lambda s, k=k, c=c: black_scholes(k, s) - float(c), 1e-3, 2.0)
    for k, c in zip(strikes, payoffs, strict=True)
]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3))
axes[0].plot(solution.ts, price[:, :5], lw=0.9)
axes[0].set(xlabel="years", ylabel="price")
axes[1].plot(strikes, implied, "o-", ms=3)
axes[1].axhline(math.sqrt(theta), color="0.6", lw=0.8)
axes[1].set(xlabel="strike", ylabel="implied volatility")
