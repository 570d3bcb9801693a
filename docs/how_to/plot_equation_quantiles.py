"""
How do I plot the mean and the quantiles of the solution?
=========================================================

Solve the equation for many samples at once. The first dimension of the state is the batch, and each
sample has its own Brownian motion. ``save="all"`` keeps the states at all times of the grid, with
the shape ``(times, batch, *event)``; mean and quantiles are taken over the batch. Look for the
mean, which is above the median where the law is skewed.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

# dx = 2 (1 - x) dt + 0.4 x dW
equation = sdekit.SDE(lambda t, x: 2 * (1 - x), lambda t, x: 0.4 * x, noise_type="diagonal")
x0 = torch.full((5000, 1), 3.0)
grid = sdekit.uniform(0.0, 3.0, 150)
noise = sdekit.WhiteNoise(seed=0)
solution = sdekit.solve(equation, x0, grid, solver=sdekit.SRID2(), noise=noise, save="all")
x = solution.xs[:, :, 0]
low, median, high = torch.quantile(x, torch.tensor([0.05, 0.5, 0.95]), dim=1)

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(solution.ts, x[:, :5], color="0.6", lw=0.5)
ax.fill_between(solution.ts, low, high, alpha=0.3, label="5 % to 95 %")
ax.plot(solution.ts, median, label="median")
ax.plot(solution.ts, x.mean(dim=1), "k--", label="mean")
ax.set(xlabel="time", ylabel="x", title="grey: five of the 5000 paths")
ax.legend()

# %%
# A mean over samples has a sampling error
# ----------------------------------------
# It falls as one over the square root of the number of samples. Here the exact mean is
# :math:`1 + 2 e^{-2 t}`. Finer steps do not help where the sampling error is larger than the error
# of the steps.

end = x[-1]
error = end.std() / len(end) ** 0.5
print(f"mean at t = 3: {end.mean():.4f}, standard error {error:.4f}")
print(f"exact:         {1 + 2 * torch.exp(torch.tensor(-6.0)):.4f}")

# %%
# Without all states in memory
# ----------------------------
# :func:`sdekit.integrate` gives the states one by one, so that memory does not grow with the number
# of steps. These are the same states as above, because the seed is the same.

points = sdekit.integrate(equation, x0, grid, solver=sdekit.SRID2(), noise=noise)
means = [float(point.x.mean()) for point in points]
print(f"largest difference of the means: {max(abs(x.mean(dim=1) - torch.tensor(means))):.1e}")

# %%
# Reference: :func:`sdekit.solve`, :class:`sdekit.SDE`, :class:`sdekit.WhiteNoise`. Which solver to
# take: :doc:`/solvers`.
