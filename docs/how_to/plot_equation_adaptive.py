"""
How do I use adaptive steps with a tolerance?
=============================================

Pass ``control=PIDController(rtol, atol)`` and a solver with an error estimate. The times, here 0
and 8, are then only the ends of the solve: each sample chooses its own steps, and ``save=`` gives
the times of the output. The example is a FitzHugh-Nagumo neuron with noise. Look for short steps
where v changes fast, and long ones between.
"""

import matplotlib.pyplot as plt
import sdekit
import torch


def neuron(t, x):
    v, w = x.unbind(dim=1)
    return torch.stack([(v - v**3 / 3 - w + 0.35) / 0.1, v + 0.7 - 0.8 * w], dim=1)


strength = torch.tensor([0.1, 0.03])
equation = sdekit.SDE(neuron, lambda t, x: strength, "additive")
x0 = torch.tensor([[-1.2, -0.62], [1.0, 0.5]], dtype=torch.float64)
control = sdekit.PIDController(rtol=1e-2, atol=1e-2)
path = sdekit.BrownianPath(seed=2, knots=(0.0, 8.0))
moves = []
solution = sdekit.solve(
    equation, x0, [0.0, 8.0], solver=sdekit.ShARK(), control=control, noise=path,
    callback=moves.append, save=torch.linspace(0.0, 8.0, 400),
)  # fmt: skip
print("accepted", solution.accepted.tolist(), "rejected", solution.rejected.tolist())

fig, axes = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
axes[0].plot(solution.ts, solution.xs[:, :, 0], lw=0.8, label=["sample 0", "sample 1"])
axes[0].set(ylabel="v")
axes[0].legend()
for i in range(2):
    rows = [(move, (move.samples == i).nonzero().flatten().tolist()) for move in moves]
    steps = [(move.t0[row], move.t1[row] - move.t0[row]) for move, taken in rows for row in taken]
    axes[1].semilogy(*torch.tensor(steps).T, ".", ms=3)
axes[1].set(xlabel="time", ylabel="length of the step")

# %%
# What the tolerance controls
# ---------------------------
# The estimated error of each step is kept below ``atol + rtol |x|``, and errors add up over the
# steps. So compare once with a solve in short steps, on the same path:

grid = sdekit.uniform(0.0, 2.0, 1024)
exact = sdekit.solve(equation, x0, grid, solver=sdekit.ShARK(), noise=path).x
for tolerance in (3e-2, 1e-2, 3e-3):
    adaptive = sdekit.solve(
        equation, x0, [0.0, 2.0], solver=sdekit.ShARK(), noise=path,
        control=sdekit.PIDController(tolerance, tolerance),
    )  # fmt: skip
    error = float((adaptive.x - exact).abs().max())
    print(f"tolerance {tolerance:g}: error {error:.1e}, steps {adaptive.accepted.tolist()}")

# %%
# Pitfalls
# --------
# New noise after a rejected step biases the result, so ``WhiteNoise`` is refused:

try:
    sdekit.solve(
        equation, x0, [0.0, 1.0], solver=sdekit.ShARK(), control=control,
        noise=sdekit.WhiteNoise(0),
    )  # fmt: skip
except TypeError as error:
    print(error)

# %%
# Where g depends on x, steps that depend on the path leave a small bias, which falls with the
# tolerance; there, prefer a fixed grid (:doc:`/solvers`, which also lists the solvers with an error
# estimate). A sample that fails raises
# :class:`sdekit.UnfinishedError`; ``throw=False`` returns the others with a ``status`` per sample.
# Reference: :class:`sdekit.PIDController`.
