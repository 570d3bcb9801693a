"""
One Brownian path, refined
==========================

`BrownianPath` is a function of the seed: any grid reads the same path, in any order, and nothing is
stored. So a solve with finer steps is the same experiment, and errors of single paths are defined.
Look for the ends of long steps: on the left they are on the finest path exactly, on the right
nearly.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

path = sdekit.BrownianPath(seed=4)
walk = sdekit.SDE(lambda t, x: -2 * x, lambda t, x: 1.0, "additive")
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
for n, alpha in ((4, 0.9), (16, 0.7), (64, 0.6), (1024, 0.5)):
    grid = sdekit.uniform(0.0, 1.0, n)
    increments = path.increments(grid.tolist(), torch.zeros(1, 1), (1,))
    w = torch.cat([torch.zeros(1)] + [i.w[0] for i in increments]).cumsum(0)
    axes[0].plot(grid, w, lw=1.2 if n < 1024 else 0.4, alpha=alpha, label=f"{n} steps")
    solution = sdekit.solve(
        walk, torch.ones(1, 1), grid, solver=sdekit.ShARK(), noise=path, save="all"
    )
    axes[1].plot(grid, solution.xs[:, 0, 0], lw=1.2 if n < 1024 else 0.4, alpha=alpha)
axes[0].set(title="a Brownian path", xlabel="time", ylabel="W")
axes[1].set(title="dx = -2 x dt + dW by ShARK", xlabel="time", ylabel="x")
axes[0].legend()
