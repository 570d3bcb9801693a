"""
How do I stop at an event, or find first-passage times?
=======================================================

.. index:: ! events

Pass ``event=Event(g)``, where g(t, x), here not the diffusion coefficient, is one number per sample
that is zero at the event. For a stochastic equation this finds the first passage of zero in
continuous time, also between the times of the grid. The example is Brownian motion with drift 1 and
a level at 0.8. Look for the agreement of the histogram with the exact law of the passage times,
which is inverse Gaussian.
"""

import math

import matplotlib.pyplot as plt
import sdekit
import torch

walk = sdekit.SDE(lambda t, x: 1 + 0 * x, lambda t, x: 0.7, "additive")
level = sdekit.Event(lambda t, x: x[:, 0] - 0.8)
ends = sdekit.Event(lambda t, x: x[:, 0] - 0.8, located=False)  # ends of steps only
grid = sdekit.uniform(0.0, 9.0, 90)
x0 = torch.zeros(20000, 1)


def passages(event):
    noise = sdekit.WhiteNoise(0)
    solution = sdekit.solve(walk, x0, grid, solver=sdekit.EulerMaruyama(), noise=noise, event=event)
    return solution.events.t[0]


passage_times = passages(level)
t = torch.linspace(0.01, 4.0, 300)
density = 0.8 / (0.7 * (2 * math.pi * t**3).sqrt()) * torch.exp(-((0.8 - t) ** 2) / (0.98 * t))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
axes[0].hist(passage_times, bins=80, range=(0, 4), density=True, alpha=0.4, label="Event(g)")
axes[0].plot(t, density, "k", lw=0.8, label="exact density")
axes[0].set(xlabel="time of the passage", ylabel="density")
axes[0].legend()
paths = sdekit.solve(
    walk, x0[:8], grid, solver=sdekit.EulerMaruyama(), noise=sdekit.WhiteNoise(0), event=level,
    save="all",
)  # fmt: skip
axes[1].plot(paths.ts, paths.xs[:, :, 0], lw=0.8)
axes[1].plot(paths.events.t[0], paths.events.x[0, :, 0], "k.")
axes[1].set(xlabel="time", ylabel="x", xlim=(0, 1.2), title="samples stop at the level")

# %%
# Tests at the ends of steps alone are too late
# ---------------------------------------------
# ``located=False`` stops a sample at the end of the first step after which the sign of g has
# changed. Steps of 0.1 then give a mean that is too large. A sample that never passes has NaN.

for name, times in (("Event(g)", passage_times), ("located=False", passages(ends))):
    error = times.std() / len(times) ** 0.5
    print(f"{name:15s} mean {times.nanmean():.4f} +- {error:.4f}, exact 0.8")

# %%
# Any condition
# -------------
# With ``located=False`` g may return booleans, such as whether x is outside a disc.

disc = sdekit.Event(lambda t, x: x.norm(dim=1) > 1, located=False)
plane = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
left = sdekit.solve(plane, torch.zeros(1000, 2), grid, solver=sdekit.ShARK(), event=disc,
                    noise=sdekit.WhiteNoise(1)).events  # fmt: skip
print(f"{int(left.count.sum())} of 1000 left the disc, after {left.t.nanmean():.2f} on average")

# %%
# Ordinary equations
# ------------------
# Zeros are located on the interpolation within the step; ``direction`` selects those at which g
# rises (1) or falls (-1), ``terminal=False`` finds all of them, and gradients flow to their times.

fall = sdekit.ODE(lambda t, x: torch.stack([x[:, 1], -9.81 + 0 * x[:, 1]], dim=1))
ground = sdekit.Event(lambda t, x: x[:, 0], direction=-1)
height = torch.tensor([10.0, 20.0], dtype=torch.float64, requires_grad=True)
start = torch.stack([height, 0 * height], dim=1)
control = sdekit.PIDController(rtol=1e-8, atol=1e-8)
landed = sdekit.solve(
    fall, start, [0.0, 9.0], solver=sdekit.Dopri5(), control=control, event=ground
).events.t[0]
(slope,) = torch.autograd.grad(landed.sum(), height)
print("landing times", landed.tolist(), "derivatives by the height", slope.tolist())

# %%
# No gradients flow through a first passage of a stochastic equation; see "Events" in
# :doc:`/solvers` for its accuracy. Reference: :class:`sdekit.Event`, :class:`sdekit.Events`.
