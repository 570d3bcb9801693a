"""
How do I check that my steps are short enough?
==============================================

Solve twice on one :class:`sdekit.BrownianPath`, with n and 2 n steps. The path is the same function
of the seed for every grid, so that the difference is the error of the longer steps, up to a factor,
path by path. No exact solution is needed. Look for the falling line on the right; the grey line, of
new noise on each grid, shows nothing about the steps.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import sdekit
import torch

equation = sdekit.SDE(lambda t, x: x - x**3, lambda t, x: 0.4 + 0.2 * torch.sin(x), "diagonal")
x0 = torch.linspace(-1.5, 1.5, 500, dtype=torch.float64)[:, None]
path = sdekit.BrownianPath(seed=0, knots=(0.0, 4.0))


def solved(steps, noise, save="last"):
    grid = sdekit.uniform(0.0, 4.0, steps)
    return sdekit.solve(equation, x0, grid, solver=sdekit.SRID2(), noise=noise, save=save)


counts = [16, 32, 64, 128, 256]
ends = [solved(n, path).x for n in (*counts, 512)]
differences = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
fresh = [solved(n, sdekit.WhiteNoise(seed=0)).x for n in (*counts, 512)]
useless = [float((a - b).square().mean().sqrt()) for a, b in pairwise(fresh)]

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
for n in (16, 32, 128):
    solution = solved(n, path, save="all")
    axes[0].plot(solution.ts, solution.xs[:, 380, 0], ".-", ms=3, lw=0.8, label=f"{n} steps")
axes[0].set(xlabel="time", ylabel="x", title="one path", ylim=(0.3, None))
axes[0].legend(loc="lower left", ncols=3)
axes[1].loglog(counts, differences, "o-", label="BrownianPath")
axes[1].loglog(counts, useless, "s--", color="0.6", label="WhiteNoise: other noise on each grid")
axes[1].set(xlabel="steps n", ylabel="difference of n and 2 n steps",
            xticks=counts, xticklabels=counts)  # fmt: skip
axes[1].minorticks_off()
axes[1].legend()

# %%
# For short steps the differences fall with the strong order of the solver, 1.5 for ``SRID2`` with
# diagonal noise. If they do not fall, something is wrong: an equation that is not smooth, or noise
# that is not one path, such as the grey line.

for n, a, b in zip(counts, differences, differences[1:], strict=False):
    order = torch.log2(torch.tensor(a / b))
    print(f"{n:4d} steps: difference {a:.1e}, order {order:.2f}")

# %%
# The error of an expectation
# ---------------------------
# Averages over the same paths have nearly the same sampling error on both grids, which cancels in
# their difference. So the difference shows the error of the steps, even where this is much smaller
# than the sampling error of each average.

a = ends[1].square()
b = ends[2].square()
print(f"E x^2 with 32 and 64 steps: {a.mean():.4f} and {b.mean():.4f}")
print(f"sampling error of each: {b.std() / 500**0.5:.4f}")
print(f"sampling error of the difference: {(a - b).std() / 500**0.5:.4f}")

# %%
# The path is defined between its ``knots``, by default 0 and 1. Times are rounded to parts
# :math:`2^{-20}` of the distance between knots (``depth=20``). A uniform grid whose number of steps
# is a power of two is on such times and costs least; ``path.snap(grid)`` moves another grid there.
# Instead of the number of steps you can give a tolerance: :doc:`plot_equation_adaptive`. Reference:
# :class:`sdekit.BrownianPath`.
