"""
How do I save the states at chosen times, or get dense output?
==============================================================

Pass the times as ``save=``, or pass ``save="dense"`` (dense output) and evaluate the solution at
any time later, by ``solution.at(t)``. The steps need not end at these times: the solver
interpolates the states between the ends of its steps. The example is a predator-prey equation in
few long steps. Look for smooth lines between the dots.
"""

import matplotlib.pyplot as plt
import sdekit
import torch


def predator_prey(t, x):
    hare, lynx = x.unbind(dim=1)
    return torch.stack([hare * (1 - lynx), lynx * (hare - 1)], dim=1)


x0 = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
moves = []
solution = sdekit.solve(
    sdekit.ODE(predator_prey), x0, [0.0, 14.0], solver=sdekit.Dopri8(), control=control,
    save="dense", callback=moves.append,
)  # fmt: skip
times = torch.linspace(0.0, 14.0, 300, dtype=torch.float64)
states = solution.at(times)  # (300, 1, 2)

fig, ax = plt.subplots(figsize=(7, 3.3))
ax.plot(times, states[:, 0], label=["hares", "lynxes"])
ends = torch.stack([move.x[0] for move in moves])
ax.plot([float(move.t1[0]) for move in moves], ends, "k.")
ax.set(xlabel="time", ylabel="population", title="dots: ends of the steps")
ax.legend()

# %%
# Times that are known before the solve
# -------------------------------------
# ``save=`` with times keeps nothing else in memory. ``solution.ts`` has the times of ``xs``.

some = sdekit.solve(
    sdekit.ODE(predator_prey), x0, [0.0, 14.0], solver=sdekit.Dopri8(), control=control,
    save=[1.0, 2.5, 10.0],
)  # fmt: skip
print(some.ts.tolist(), tuple(some.xs.shape))
print(f"from the dense solve: {float((some.xs - solution.at(some.ts)).abs().max()):.1e}")

# %%
# Stochastic equations
# --------------------
# Between the steps a state is bridged along the Brownian path, so that it has the variance of the
# solution there; a straight line would not. That needs a path that can be read anywhere, so
# ``save="dense"`` takes a ``BrownianPath``. Look for the dashed line, which is below the exact
# variance between the steps.

equation = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
path = sdekit.BrownianPath(seed=0)
grid = sdekit.uniform(0.0, 1.0, 4)
coarse = sdekit.solve(
    equation, torch.zeros(2000, 1, dtype=torch.float64), grid, solver=sdekit.ShARK(), noise=path,
    save="dense",
)  # fmt: skip
times = torch.linspace(0.0, 1.0, 65, dtype=torch.float64)
x = coarse.at(times)[:, :, 0]
lines = torch.stack([torch.lerp(x[16 * (i // 16)], x[min(16 * (i // 16) + 16, 64)], i % 16 / 16)
                     for i in range(65)])  # fmt: skip
fig, ax = plt.subplots(figsize=(6, 3.3))
ax.plot(times, x.var(dim=1), label='save="dense"')
ax.plot(times, lines.var(dim=1), "--", label="straight lines between the steps")
ax.plot(times, (1 - torch.exp(-2 * times)) / 2, "k", lw=0.8, label="exact")
ax.set(xlabel="time", ylabel="variance of 2000 samples", title="four steps of ShARK")
ax.legend()

# %%
# On a fixed grid ``save="all"`` keeps the states at the ends of all steps. Where g depends on the
# state, they are more accurate than states between the steps. Orders between the steps:
# "Between the steps" in :doc:`/solvers`. Reference: :func:`sdekit.solve`, :class:`sdekit.Solution`.
