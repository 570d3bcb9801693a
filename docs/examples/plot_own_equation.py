"""
An equation as a class
======================

A stochastic pendulum as a class, for any solver of additive noise, any path and any grid. Friction
and noise balance each other: look for the mean of the energy, which rises to a constant.
"""

import matplotlib.pyplot as plt
import sdekit
import torch


class Pendulum(sdekit.AbstractSDE):
    """dq = p dt, dp = (-sin q - c p) dt + s dW."""

    noise_type = "additive"

    def __init__(self, friction, noise):
        self.friction = friction
        self.noise = noise

    def drift(self, t, x):
        q, p = x.unbind(dim=1)
        return torch.stack([p, -torch.sin(q) - self.friction * p], dim=1)

    def diffusion(self, t, x):
        return torch.tensor([0.0, self.noise])


grid = sdekit.uniform(0.0, 60.0, 1200)
solution = sdekit.solve(
    Pendulum(0.1, 0.3), torch.zeros(500, 2), grid, solver=sdekit.ShARK(),
    noise=sdekit.WhiteNoise(1), save="all",
)  # fmt: skip
q, p = solution.xs.unbind(dim=2)
energy = 0.5 * p**2 + 1 - torch.cos(q)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
axes[0].plot(q[:, :3], p[:, :3], lw=0.4)
axes[0].set(xlabel="angle", ylabel="momentum")
axes[1].plot(solution.ts, energy[:, :3], lw=0.4)
axes[1].plot(solution.ts, energy.mean(dim=1), "k", label="mean of 500")
axes[1].set(xlabel="time", ylabel="energy")
axes[1].legend()
