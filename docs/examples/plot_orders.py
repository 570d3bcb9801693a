"""
Orders of convergence
=====================

The mean error of paths against the step, on the same Brownian paths. Look for dots along the lines,
whose slopes are the strong orders: 0.5 for Euler and Maruyama, 1 for Milstein and 1.5 for SRID2.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from sdekit.plot import convergence

gbm = sdekit.SDE(lambda t, x: 0.5 * x, lambda t, x: 0.8 * x)
n = 2000
path = sdekit.BrownianPath(seed=0)
x0 = torch.ones(n, 1, dtype=torch.float64)
w = next(path.increments([0.0, 1.0], x0, (1,))).w
exact = torch.exp((0.5 - 0.32) + 0.8 * w)
counts = [8, 16, 32, 64, 128]
fig, ax = plt.subplots(figsize=(5.5, 4))
for solver, order in ((sdekit.EulerMaruyama(), 0.5), (sdekit.Milstein(), 1), (sdekit.SRID2(), 1.5)):
    errors = [
        float(
            (
                sdekit.solve(gbm, x0, sdekit.uniform(0.0, 1.0, k), solver=solver, noise=path).x
                - exact
            )
            .abs()
            .mean()
        )
        for k in counts
    ]
    convergence([1 / k for k in counts], errors, label=type(solver).__name__, order=order, ax=ax)
ax.set_ylabel("mean error at t = 1")
