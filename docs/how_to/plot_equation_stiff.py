"""
How do I solve a stiff equation?
================================

An equation is stiff where some rates are far larger than those of the solution, so that explicit
steps are limited by stability. Take ``Rodas5P`` with a tolerance for an ordinary equation, and
``ImplicitPlaten`` or ``ImplicitEulerMaruyama`` for a stochastic one. The picture shows the number
of steps that ``Tsit5``, an explicit pair, and ``Rodas5P`` take. Look for how they change as the
rate k grows: that of ``Tsit5`` rises with k, that of ``Rodas5P`` does not.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

control = sdekit.PIDController(rtol=1e-5, atol=1e-5)
x0 = torch.zeros(1, 1, dtype=torch.float64)
rates = [30, 100, 300]
fig, ax = plt.subplots(figsize=(5.5, 3.3))
for solver in (sdekit.Tsit5(), sdekit.Rodas5P()):
    steps = []
    for k in rates:
        relax = sdekit.ODE(lambda t, x, k=k: -k * (x - torch.cos(t)))
        solution = sdekit.solve(relax, x0, [0.0, 5.0], solver=solver, control=control)
        steps.append(int(solution.accepted[0]))
    ax.loglog(rates, steps, "o-", label=type(solver).__name__)
    print(type(solver).__name__, steps)
ax.set(xlabel="rate k", ylabel="accepted steps", title="dx = -k (x - cos t) dt")
counts = [25, 50, 100, 200, 400]
ax.set(xticks=rates, xticklabels=rates, yticks=counts, yticklabels=counts)
ax.minorticks_off()
ax.legend()

# %%
# With noise
# ----------
# The state follows a slow target at a rate of 100 to 400. Steps of 0.05 are stable with an implicit
# solver; with ``EulerMaruyama`` they end in an error that names the step.


def follow(t, x):
    return -100 * (x**3 + x - 2 * torch.cos(t))


noisy = sdekit.SDE(follow, lambda t, x: 1.0, "additive")
start = torch.zeros(1000, 1, dtype=torch.float64)
grid = sdekit.uniform(0.0, 3.0, 60)
noise = sdekit.WhiteNoise(0)
try:
    sdekit.solve(noisy, start, grid, solver=sdekit.EulerMaruyama(), noise=noise)
except sdekit.NotFiniteError as error:
    print(error)

solution = sdekit.solve(
    noisy, start, grid, solver=sdekit.ImplicitEulerMaruyama(), noise=noise, save="all"
)
fine = sdekit.uniform(0.0, 3.0, 1000)
short = sdekit.solve(
    noisy, start, fine, solver=sdekit.EulerMaruyama(), noise=noise, save=solution.ts[1:]
)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
axes[0].plot(short.ts, short.xs.mean(dim=1), lw=2, color="0.7", label="EulerMaruyama, 1000 steps")
axes[0].plot(solution.ts, solution.xs.mean(dim=1), ".", ms=3, label="implicit, 60 steps")
axes[0].set(xlabel="time", ylabel="mean of 1000 samples")
axes[0].legend()
axes[1].plot(short.ts, short.xs.std(dim=1), lw=2, color="0.7")
axes[1].plot(solution.ts, solution.xs.std(dim=1), ".", ms=3)
axes[1].set(xlabel="time", ylabel="standard deviation")

# %%
# Which one
# ---------
# - Long implicit steps do not follow the fast fluctuations: the mean is right and the standard
#   deviation is not, as the right panel shows. Where it matters, take shorter steps.
# - ``ImplicitPlaten`` has adaptive steps (``control=``), for drifts of which the stiffness changes.
# - ``SKROCK(s)`` is explicit, with s evaluations per step, for large systems without a Jacobian.
# - Where the stiff part is linear and diagonal, :class:`sdekit.SemiLinear` with
#   ``ExponentialHeun(A)`` integrates it exactly.
#
# A comparison with SciPy's solvers is in :doc:`/solvers`. Reference: :class:`sdekit.Rodas5P`,
# :class:`sdekit.ImplicitPlaten`, :class:`sdekit.SKROCK`.
