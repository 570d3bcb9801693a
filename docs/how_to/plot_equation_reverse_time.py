r"""
How do I solve an equation backwards in time?
=============================================

There are two different questions. To get the *law* of the forward process at earlier times from
samples at the end, solve :class:`sdekit.ReverseSDE`, or :class:`sdekit.ProbabilityFlow` without
noise; both need the score :math:`\nabla \log p_t(x)`. To solve *the same equation* with time
running backwards, pass a decreasing grid. In the example, x begins in two groups: look for the
paths in reverse time, from right to left, which end in the same groups.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

forward = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
groups = torch.tensor([-2.0, 2.0], dtype=torch.float64)
spread = 0.3


def score(t, x):
    """grad log p_t of the mixture of two normal laws with means e^-t m."""
    decay = sdekit.elementary.exp(-t)
    variance = 0.5 + (spread**2 - 0.5) * decay**2
    distance = groups * decay - x  # (batch, 2)
    weights = torch.softmax(-(distance**2) / (2 * variance), dim=1)
    return (weights * distance).sum(dim=1, keepdim=True) / variance


n = 4000
generator = torch.Generator().manual_seed(0)
normals = torch.randn(n, 1, dtype=torch.float64, generator=generator)
x0 = groups.repeat(n // 2)[:, None] + spread * normals
ts = sdekit.uniform(0.0, 1.5, 150)
there = sdekit.solve(forward, x0, ts, solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(1), save="all")
back = sdekit.solve(
    sdekit.ReverseSDE(forward, score), there.x, ts.flip(0), solver=sdekit.ShARK(),
    noise=sdekit.WhiteNoise(2), save="all",
)  # fmt: skip
flow = sdekit.solve(
    sdekit.ProbabilityFlow(forward, score), there.x, ts.flip(0), solver=sdekit.RK4(), save="all"
)
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
names = ["forward", "ReverseSDE", "ProbabilityFlow"]
for ax, name, solution in zip(axes, names, (there, back, flow), strict=True):
    ax.plot(solution.ts, solution.xs[:, :40, 0], lw=0.5)
    ax.set(xlabel="time", title=name)
axes[0].set_ylabel("x")
near = [float((x[:, 0].abs() - 2).abs().lt(0.9).double().mean()) for x in (x0, back.x, flow.x)]
print("share within 0.9 of a group: given {:.3f}, reverse {:.3f}, flow {:.3f}".format(*near))

# %%
# What the two have in common
# ---------------------------
# At each time the states of both have the law of the forward process. The reverse equation has
# noise of its own, so its paths do not retrace those of the first panel. The flow is deterministic:
# each end has one beginning, and :func:`sdekit.log_likelihood` computes densities with it. ``eta``
# of ``ReverseSDE`` is the amount of noise, from 0, the flow, to 1, Anderson's equation, and beyond.

for eta in (0.5, 1.0, 1.5):
    equation = sdekit.ReverseSDE(forward, score, eta=eta)
    x = sdekit.solve(
        equation, there.x, ts.flip(0), solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(2)
    ).x
    print(f"eta = {eta}: standard deviation {x.std():.3f}, given {x0.std():.3f}")

# %%
# The same equation, backwards
# ----------------------------
# A decreasing grid solves :math:`\mathrm{d}x = f\,\mathrm{d}t + g\,\mathrm{d}W` with
# :math:`\mathrm{d}t < 0`. On the same :class:`sdekit.BrownianPath` it returns to the beginning, up
# to the error of the steps, because the noise does not depend on x.

path = sdekit.BrownianPath(seed=3, knots=(0.0, 1.5))
end = sdekit.solve(forward, x0, ts, solver=sdekit.ShARK(), noise=path).x
again = sdekit.solve(forward, end, ts.flip(0), solver=sdekit.ShARK(), noise=path).x
print(f"largest difference after there and back: {float((again - x0).abs().max()):.1e}")
other = sdekit.solve(forward, end, ts.flip(0), solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(3)).x
print(f"with other noise: {float((other - x0).abs().max()):.1f}")

# %%
# For an Ito equation with diagonal noise a decreasing grid is an Ito equation with respect to the
# *reversed* path, which is another equation; a Stratonovich equation returns. Where the score is
# not known, a network is trained to approximate it: that is a diffusion model (package
# ``sdekit_diffusion``).
# Reference: :class:`sdekit.ReverseSDE`, :class:`sdekit.ProbabilityFlow`.
