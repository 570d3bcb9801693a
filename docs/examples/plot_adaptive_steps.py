"""
Adaptive steps per sample
=========================

Three orbits of Kepler's problem with different eccentricities e in one batch. Each has steps of its
own: look for the many short steps of the orbit with e = 0.95 near the centre of attraction, which
the other orbits do not take.
"""

import matplotlib.pyplot as plt
import sdekit
import torch


def gravity(t, x):
    r = x[:, :2]
    return torch.cat([x[:, 2:], -r / r.norm(dim=1, keepdim=True) ** 3], dim=1)


e = torch.tensor([0.0, 0.6, 0.95], dtype=torch.float64)
zero = torch.zeros_like(e)
x0 = torch.stack([1 - e, zero, zero, ((1 + e) / (1 - e)).sqrt()], dim=1)
moves = []
control = sdekit.PIDController(rtol=1e-7, atol=1e-7)
solution = sdekit.solve(
    sdekit.ODE(gravity), x0, [0.0, 6.283], solver=sdekit.Dopri5(), control=control,
    save="dense", callback=moves.append,
)  # fmt: skip
orbits = solution.at(torch.linspace(0.0, 6.283, 400, dtype=torch.float64))

fig, axes = plt.subplots(1, 2, figsize=(9, 3.5))
for i in range(3):
    axes[0].plot(orbits[:, i, 0], orbits[:, i, 1], lw=0.8, color=f"C{i}")
    steps = [
        (float(m.t0[row]), float(m.t1[row] - m.t0[row]), m.x[row])
        for m in moves
        for row in (m.samples == i).nonzero().flatten().tolist()
    ]
    points = torch.stack([x for *_, x in steps])
    axes[0].plot(points[:, 0], points[:, 1], ".", color=f"C{i}", ms=4)
    label = f"e = {float(e[i]):g}: {int(solution.accepted[i])} steps"
    axes[1].semilogy(
        *zip(*[(t, h) for t, h, _ in steps], strict=True), ".-", ms=3, lw=0.6, label=label
    )
axes[0].plot(0, 0, "k*")
axes[0].set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title="the dots are the ends of steps")
axes[1].set(xlabel="time", ylabel="length of the step")
axes[1].legend()
