"""
Probability flow and reverse SDE
================================

Both have the same law at every time if they begin in the prior. The flow is an ordinary equation,
which maps each noise to one sample. Look for its smooth paths, which do not cross. Paths of the SDE
are rough, and their ends hardly depend on where they began.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [0.02, 0.05])
x_T = torch.linspace(-2.0, 2.0, 15)[:, None]  # the same noise for both
fig, axes = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True)
for ax, method, name in ((axes[0], "ddim", "probability flow"), (axes[1], "sde", "reverse SDE")):
    solution = sd.sample(
        law, 15, sde="vp", method=method, steps=200, seed=0, x_T=x_T, save="all",
        return_solution=True,
    )  # fmt: skip
    ax.plot(solution.ts, solution.xs[:, :, 0], lw=0.8, color="C0")
    ax.set(title=name, xlabel="time, from right to left")
axes[0].set_ylabel("x")
