r"""
How do I solve an equation with correlated noise?
=================================================

If g is constant, change the variable: with the Cholesky factor L of the covariance of the noise and
:math:`x = L z`, the noise of z is additive and independent, and ``ShARK`` applies. If g depends on
x, give it as a matrix, with ``noise_type="general"``. The example has three coupled quantities.
Look at the right panel: :math:`x_2` rises with :math:`x_1` and :math:`x_3` falls, as the
correlations 0.9 and -0.5 require.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

correlation = torch.tensor(
    [[1.0, 0.9, -0.5], [0.9, 1.0, -0.3], [-0.5, -0.3, 1.0]], dtype=torch.float64
)
L = torch.linalg.cholesky(correlation)


def f(t, x):
    return torch.sin(x.roll(1, dims=1)) - x


def drift_of_z(t, z):
    return torch.linalg.solve_triangular(L, f(t, z @ L.T).T, upper=False).T


grid = sdekit.uniform(0.0, 2.0, 32)
z0 = torch.zeros(2000, 3, dtype=torch.float64)
path = sdekit.BrownianPath(seed=0, knots=(0.0, 2.0))
changed = sdekit.SDE(drift_of_z, lambda t, z: 1.0, "additive")
solution = sdekit.solve(changed, z0, grid, solver=sdekit.ShARK(), noise=path, save="all")
xs = solution.xs @ L.T

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
axes[0].plot(solution.ts, xs[:, 0], label=["$x_1$", "$x_2$", "$x_3$"])
axes[0].set(xlabel="time", ylabel="x", title="one sample")
axes[0].legend()
axes[1].plot(xs[1, :, 0], xs[1, :, 1], ".", ms=2, label="$x_2$")
axes[1].plot(xs[1, :, 0], xs[1, :, 2], ".", ms=2, label="$x_3$")
axes[1].set(xlabel="$x_1$", ylabel="$x_2$ and $x_3$", title="after the first step")
axes[1].legend(markerscale=4)
print("correlations after the first step:")
print(torch.corrcoef(xs[1].T).round(decimals=2))

# %%
# The matrix as general noise
# ---------------------------
# g has the shape ``(batch, 3, m)``, with ``noise_size=m`` Brownian motions, and m may differ from
# the number of coordinates. Both equations have the same solution on the same path, but a solver
# for general noise has a lower order here: compare the errors of paths.

general = sdekit.SDE(f, lambda t, x: L.expand(len(x), 3, 3), "general", noise_size=3)
fine = sdekit.uniform(0.0, 2.0, 1024)
exact = sdekit.solve(changed, z0, fine, solver=sdekit.ShARK(), noise=path).x @ L.T
euler = sdekit.solve(general, z0, grid, solver=sdekit.EulerMaruyama(), noise=path).x
for name, x in (("change of variable, ShARK", xs[-1]), ("general, EulerMaruyama", euler)):
    print(f"{name}: root mean square error {float((x - exact).square().mean().sqrt()):.1e}")

# %%
# Noise that depends on the state
# -------------------------------
# Two prices with correlated noise: row i of g is :math:`x_i \sigma_i` times row i of L, with the
# volatilities :math:`\sigma_i`. The logarithms of the prices have constant noise, so that the
# change of variable above would apply to them; the matrix below needs no such transformation.

volatility = torch.tensor([0.2, 0.4], dtype=torch.float64)
rows = volatility[:, None] * torch.linalg.cholesky(correlation[:2, :2])
prices = sdekit.SDE(
    lambda t, x: 0.05 * x, lambda t, x: x[:, :, None] * rows, "general", noise_size=2
)
start = torch.full((2000, 2), 100.0, dtype=torch.float64)
end = sdekit.solve(
    prices, start, sdekit.uniform(0.0, 1.0, 100), solver=sdekit.EulerMaruyama(),
    noise=sdekit.WhiteNoise(0),
).x  # fmt: skip
print(f"correlation of the logarithms: {torch.corrcoef(end.log().T)[0, 1]:.2f}, given 0.9")

# %%
# One Brownian motion that drives all coordinates is ``noise_type="scalar"``. Reference:
# :class:`sdekit.SDE`, :class:`sdekit.AbstractSDE` (the shapes of g and W), :doc:`/solvers`.
