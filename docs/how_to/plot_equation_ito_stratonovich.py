r"""
How do I convert an equation between Ito and Stratonovich?
==========================================================

The Stratonovich equation :math:`\mathrm{d}x = f\,\mathrm{d}t + g \circ \mathrm{d}W` is the Ito
equation with the drift :math:`f + \frac12 \sum_j (\partial_x g_j)\, g_j`, where :math:`g_j` is the
column j of g. ``torch.func.jvp`` computes this correction for any g. The picture shows one path by
a Stratonovich solver, and by an Ito solver with and without the correction: look for the dashed
line, which is another path.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from torch.func import jvp


def f(t, x):
    return 0.5 * torch.sin(x)


def g(t, x):
    return 0.8 * x


def correction(t, x):
    """g dg/dx of diagonal noise: the derivative of g in the direction of g."""
    return jvp(lambda y: g(t, y), (x,), (g(t, x),))[1]


stratonovich = sdekit.SDE(f, g, "diagonal", "stratonovich")
ito = sdekit.SDE(lambda t, x: f(t, x) + 0.5 * correction(t, x), g, "diagonal", "ito")
wrong = sdekit.SDE(f, g, "diagonal", "ito")

path = sdekit.BrownianPath(seed=1, knots=(0.0, 2.0))
grid = sdekit.uniform(0.0, 2.0, 256)
x0 = torch.full((1, 1), 1.0, dtype=torch.float64)


def solved(equation, solver):
    return sdekit.solve(equation, x0, grid, solver=solver, noise=path, save="all")


reference = solved(stratonovich, sdekit.Heun())
fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(reference.ts, reference.xs[:, 0, 0], lw=3, color="0.75", label="Stratonovich, Heun")
ax.plot(reference.ts, solved(ito, sdekit.SRID2()).xs[:, 0, 0], lw=1, label="Ito, corrected, SRID2")
ax.plot(reference.ts, solved(wrong, sdekit.SRID2()).xs[:, 0, 0], "--", lw=1, label="not corrected")
ax.set(xlabel="time", ylabel="x")
ax.legend()

# %%
# From Ito to Stratonovich
# ------------------------
# Subtract the same correction. Then the solvers of Stratonovich equations apply.

back = sdekit.SDE(lambda t, x: ito.f(t, x) - 0.5 * correction(t, x), g, "diagonal", "stratonovich")
difference = solved(back, sdekit.SlowRK()).x - reference.x
print(f"by SlowRK: {float(difference.abs().max()):.1e} from Heun")

# %%
# General noise
# -------------
# g has the shape ``(batch, d, m)``; the correction is the sum over its m columns. For scalar noise
# the function above is right as it is, and for additive noise both equations are the same.


def matrix(t, x):
    rotated = torch.stack([x[:, 1], -x[:, 0]], dim=1)
    return torch.stack([0.5 * rotated, 0.3 * torch.ones_like(x)], dim=2)


def correction_of_columns(t, x):
    columns = range(matrix(t, x).shape[2])
    parts = [jvp(lambda y, j=j: matrix(t, y)[:, :, j], (x,), (matrix(t, x)[:, :, j],))[1]
             for j in columns]  # fmt: skip
    return sum(parts)


x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
print(correction_of_columns(0.0, x), "exact:", -0.25 * x)  # 0.5^2 times two rotations

# %%
# ``solve`` refuses a solver of the other calculus where the noise depends on x, so that an equation
# is not solved in the wrong calculus by accident:

try:
    sdekit.solve(stratonovich, x0, grid, solver=sdekit.SRID2())
except ValueError as error:
    print(error)

# %%
# Reference: :class:`sdekit.SDE`, :doc:`/solvers`.
