r"""
How do I estimate the probability of a rare event?
==================================================

By importance sampling of paths: solve another equation, the proposal, whose drift leads to the
event, and weight its paths. :func:`sdekit.path_weights` returns log w for each path, where w is the
density of the path under the target over that under the proposal. The mean over all paths of w in
the event, and of 0 outside, is the probability of the event. The example is :math:`x > 4` at the
time 1 for :math:`\mathrm{d}x = -x\,\mathrm{d}t + \mathrm{d}W` from 0, with a probability of about
:math:`6 \cdot 10^{-10}`. Look for half of the proposal above the level, and for the agreement of
the weighted ends with the exact density, far into the tail.
"""

import math

import matplotlib.pyplot as plt
import sdekit
import torch

level = 4.0
target = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
# The most likely path to the level is proportional to sinh t: it needs 2 c e^t more drift.
c = level / (2 * math.sinh(1.0))
proposal = sdekit.SDE(lambda t, x: -x + 2 * c * torch.exp(t), lambda t, x: 1.0, "additive")
grid = sdekit.uniform(0.0, 1.0, 100)
x0 = torch.zeros(10000, 1, dtype=torch.float64)
x, log_w = sdekit.path_weights(
    target, proposal, x0, grid, solver=sdekit.EulerMaruyama(), noise=sdekit.WhiteNoise(0)
)
weights = torch.where(x[:, 0] > level, log_w.exp(), 0.0)
probability = weights.mean()
error = weights.std() / math.sqrt(len(weights))
std = math.sqrt((1 - math.exp(-2.0)) / 2)
exact = 0.5 * math.erfc(level / (std * math.sqrt(2)))
# Euler's steps have another variance, which matters far out in the tail.
std_of_steps = math.sqrt(sum(0.01 * 0.99 ** (2 * k) for k in range(100)))
exact_of_steps = 0.5 * math.erfc(level / (std_of_steps * math.sqrt(2)))
print(f"estimate {probability:.3e} +- {error:.1e}")
print(f"exact {exact:.3e}, and {exact_of_steps:.3e} for these steps")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
bins = torch.linspace(2.5, 6.0, 71)
axes[0].hist(x[:, 0], bins, density=True, alpha=0.4, label="ends of the proposal")
axes[0].set(xlabel="x at t = 1", ylabel="density")
axes[0].axvline(level, color="k", lw=0.8)
axes[0].legend()
share = log_w.exp() / len(log_w)
axes[1].hist(x[:, 0], bins, weights=share / 0.05, histtype="step", label="weighted ends")
middle = (bins[1:] + bins[:-1]) / 2
normal = torch.exp(-0.5 * (middle / std) ** 2) / (std * math.sqrt(2 * math.pi))
axes[1].semilogy(middle, normal, "k", lw=0.8, label="exact density of the target")
axes[1].set(xlabel="x at t = 1", ylabel="density", ylim=(1e-20, 1))
axes[1].legend()

# %%
# Is the proposal good?
# ---------------------
# The expected weight is 1. If a few paths have nearly all of the weight, the estimate is
# unreliable: compute the effective number of paths in the event, :math:`(\sum w)^2 / \sum w^2`. A
# poor proposal often gives an estimate that is too small, with an error that is too small, too.

for strength in (0.6, 0.8, 1.0, 1.2):
    tried = sdekit.SDE(
        lambda t, x, k=strength: -x + 2 * k * c * torch.exp(t), lambda t, x: 1.0, "additive"
    )
    ends, log_w = sdekit.path_weights(
        target, tried, x0, grid, solver=sdekit.EulerMaruyama(), noise=sdekit.WhiteNoise(1)
    )
    w = torch.where(ends[:, 0] > level, log_w.exp(), 0.0)
    size = w.sum() ** 2 / w.square().sum()
    print(f"strength {strength}: {w.mean():.2e}, effective paths {size:.0f}")

# %%
# - Weights are exact for the discretised equations, whatever the step: only the steps' own error is
#   left. Here Euler's steps change this small probability by more than 10 %, as printed above.
# - Target and proposal must have the same g, and the noise must act where their drifts differ.
# - Divide the weighted average by the mean weight for the average of the target given the event.
# - Without a proposal, a first passage is an event: :doc:`plot_equation_first_passage`.
#
# Reference: :func:`sdekit.path_weights`; conditions on data: :doc:`plot_equation_latent`.
