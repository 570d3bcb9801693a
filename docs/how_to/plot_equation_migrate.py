"""
How do I migrate from torchsde or torchdiffeq to sdekit?
========================================================

Change the import: ``sdekit.sdeint``, ``sdeint_adjoint``, ``odeint``, ``odeint_adjoint``,
``odeint_event`` and ``odeint_dense`` have the arguments, defaults and method names of the
originals, and take the same equations and Brownian motions. The example solves one equation of
torchsde with both, on one Brownian motion. Look for two lines that coincide.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
import torchdiffeq
import torchsde


class Cycle(torch.nn.Module):
    """A limit cycle with noise, in the form that torchsde expects."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def f(self, t, y):
        return y @ torch.tensor([[1.0, 3.0], [-3.0, 1.0]]) - y * y.square().sum(1, keepdim=True)

    def g(self, t, y):
        return 0.2 * torch.cos(y)


sde = Cycle()
y0 = torch.full((2, 2), 0.1)
ts = torch.linspace(0, 4, 257)
bm = torchsde.BrownianInterval(0.0, 4.0, size=(2, 2), entropy=0, dt=1 / 64)
settings = {"bm": bm, "dt": 1 / 64, "method": "heun"}
with torch.no_grad():
    theirs = torchsde.sdeint(sde, y0, ts, **settings)
    ours = sdekit.sdeint(sde, y0, ts, **settings)
print(f"largest difference: {float((ours - theirs).abs().max()):.1e}")

fig, ax = plt.subplots(figsize=(4.5, 4))
ax.plot(*theirs[:, 0].T, lw=4, color="0.8", label="torchsde.sdeint")
ax.plot(*ours[:, 0].T, lw=0.8, label="sdekit.sdeint")
ax.set(xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
ax.legend()

# %%
# torchdiffeq
# -----------

y0 = torch.tensor([2.0, 0.0])
t = torch.linspace(0, 10, 50)
field = lambda t, y: torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
theirs = torchdiffeq.odeint(field, y0, t, rtol=1e-6, atol=1e-6)
ours = sdekit.odeint(field, y0, t, rtol=1e-6, atol=1e-6)
print(f"largest difference: {float((ours - theirs).abs().max()):.1e}, at tolerance 1e-6")

# %%
# Then ``solve``, where you need more
# -----------------------------------
# ``interop.from_torchsde`` converts the equation to one of sdekit. All solvers for its calculus and
# noise then apply, as do adaptive steps per sample and events. ``solve`` takes the grid itself
# instead of ``dt``, and returns a solution instead of a tensor.

equation = sdekit.interop.from_torchsde(sde)
path = sdekit.BrownianPath(seed=0, knots=(0.0, 4.0))
control = sdekit.PIDController(rtol=1e-2, atol=1e-2)
start = torch.tensor([[0.1, 0.1], [3.0, 3.0]])
solution = sdekit.solve(
    equation, start, [0.0, 4.0], solver=sdekit.SPaRK(), noise=path, control=control
)
print("steps of each sample:", solution.accepted.tolist())

# %%
# What is different
# -----------------
# - Seeds: ``torch.manual_seed`` makes results reproducible; torchsde depends on
#   ``numpy.random.seed``.
# - A state that is not finite is an error that names the step and, in ``sdeint``, the samples.
# - ``sdeint`` bridges states between the steps, where torchsde interpolates linearly.
#
# All differences, and what is handed on to torchdiffeq, are in :doc:`/migrating`. Reference:
# :func:`sdekit.sdeint`, :func:`sdekit.odeint`.
