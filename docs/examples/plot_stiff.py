"""
A stiff equation
================

Van der Pol's oscillator with mu = 1000: slow phases and fast jumps. Explicit steps are limited by
stability where the solution changes slowly; look for the long steps that `Rodas5P` takes there.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

mu = 1000.0


def f(t, x):
    return torch.stack([x[:, 1], mu * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], dim=1)


moves = []
solution = sdekit.solve(
    sdekit.ODE(f), torch.tensor([[2.0, 0.0]], dtype=torch.float64), [0.0, 2000.0],
    solver=sdekit.Rodas5P(), control=sdekit.PIDController(1e-5, 1e-5), callback=moves.append,
    save="dense",
)  # fmt: skip
times = torch.linspace(0.0, 2000.0, 2000, dtype=torch.float64)
steps = [(float(m.t0), float(m.t1 - m.t0)) for m in moves]
fig, axes = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
axes[0].plot(times, solution.at(times)[:, 0, 0])
axes[0].set(ylabel="x", title=f"{int(solution.accepted[0])} steps", ylim=(-2.5, 2.5))
axes[1].semilogy(*zip(*steps, strict=True), ".", ms=3)
axes[1].set(xlabel="time", ylabel="length of the step")
