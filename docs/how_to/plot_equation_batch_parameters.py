"""
How do I solve many equations with different parameters in one batch?
=====================================================================

Give each sample its parameter in a tensor of shape ``(batch, 1)``: f and g broadcast against it,
and one call solves all equations. The example is the bifurcation diagram of
dx = (r x - x^3) dt + 0.05 dW for 600 values of r. Look for the points around 0 for negative r, and
around the two stable states for positive r.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import sdekit
import torch

r = torch.linspace(-1.0, 1.5, 600, dtype=torch.float64)[:, None]
equation = sdekit.SDE(lambda t, x: r * x - x**3, lambda t, x: 0.05, "additive")
grid = sdekit.uniform(0.0, 30.0, 300)
noise = sdekit.WhiteNoise(seed=0)
x0 = torch.zeros_like(r)
x = sdekit.solve(equation, x0, grid, solver=sdekit.ShARK(), noise=noise).x

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(r, x, ".", ms=2)
ax.plot(r[r > 0], torch.stack([r[r > 0].sqrt(), -r[r > 0].sqrt()], dim=1), "k", lw=0.6)
ax.set(xlabel="r", ylabel="x at t = 30", title="lines: the stable states without noise")

# %%
# With adaptive steps
# -------------------
# Samples then have steps of their own and finish at different times, so f is called with only some
# of the rows. A plain function with a tensor of all parameters fails there. Define ``rows``, which
# returns the equation of some of the samples.


@dataclass(frozen=True, eq=False)
class Pitchfork(sdekit.AbstractSDE):
    """dx = (r x - x^3) dt."""

    noise_type = "none"
    r: torch.Tensor

    def drift(self, t, x):
        return self.r * x - x**3

    def rows(self, index):
        return Pitchfork(self.r[index])


control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
start = torch.full_like(r, 0.1)
solution = sdekit.solve(Pitchfork(r), start, [0.0, 30.0], solver=sdekit.Tsit5(), control=control)
print("steps of r = -1, 0.25 and 1.5:", solution.accepted[[0, 300, 599]].tolist())

# %%
# Sample i has noise i
# --------------------
# The noise of sample i depends on the seed and on i only, so parts of a batch have the same results
# as the whole: ``first`` is the index of the first sample of a part, ``index`` those of any.

part = sdekit.SDE(lambda t, x: r[400:] * x - x**3, lambda t, x: 0.05, "additive")
again = sdekit.solve(
    part, x0[400:], grid, solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(seed=0, first=400)
).x
print("parts are the same:", torch.equal(again, x[400:]))

# %%
# To compare equations on the *same* noise, give all samples the same seed:
# ``WhiteNoise([5] * 600)``. Look for a curve instead of scattered points: neighbouring values of r
# have neighbouring states.

same = sdekit.WhiteNoise([5] * len(r))
x = sdekit.solve(equation, x0, grid, solver=sdekit.ShARK(), noise=same).x
fig, ax = plt.subplots(figsize=(6, 3.0))
ax.plot(r, x, lw=1)
ax.set(xlabel="r", ylabel="x at t = 30", title="one Brownian motion for all r")

# %%
# Derivatives with respect to r: :doc:`plot_equation_gradient_memory`; ``torch.func.vmap`` over
# parameters: :doc:`/gradients`. Reference: :class:`sdekit.AbstractSDE`, :class:`sdekit.WhiteNoise`.
