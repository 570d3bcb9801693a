"""
A neural ODE, fitted to a path
==============================

A network is the right-hand side of an ordinary equation, fitted to a noisy spiral by gradients
through the solve. ``Checkpointed()`` would save memory. Look for the learned curve, which stays
near the exact one over all 60 steps, though the loss compares only ten steps at a time. Networks as
drift and diffusion: :doc:`plot_neural_sde`.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from torch import nn

torch.manual_seed(0)
spiral = sdekit.ODE(lambda t, x: x**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))
grid = sdekit.uniform(0.0, 6.0, 60)
start = torch.tensor([[2.0, 0.0]])
exact = sdekit.solve(spiral, start, grid, solver=sdekit.RK4(), save="all").xs
data = exact + 0.05 * torch.randn_like(exact)

net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
model = sdekit.ODE(lambda t, x: net(x**3))
optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
losses = []
for _ in range(400):
    i = torch.randint(0, 50, (16,))  # sixteen initial times, ten steps each
    solved = sdekit.solve(model, data[i, 0], grid[:11], solver=sdekit.RK4(), save="all").xs
    wanted = torch.stack([data[i + j, 0] for j in range(11)])
    loss = (solved - wanted).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    losses.append(float(loss.detach()))
with torch.no_grad():
    learned = sdekit.solve(model, start, grid, solver=sdekit.RK4(), save="all").xs

fig, axes = plt.subplots(1, 2, figsize=(8, 3.5))
axes[0].plot(*data[:, 0].T, ".", color="0.6", ms=4, label="data")
axes[0].plot(*exact[:, 0].T, label="exact")
axes[0].plot(*learned[:, 0].T, label="learned")
axes[0].set(xlabel="$x_1$", ylabel="$x_2$")
axes[0].legend()
axes[1].semilogy(losses, lw=0.8)
axes[1].set(xlabel="update", ylabel="loss")
