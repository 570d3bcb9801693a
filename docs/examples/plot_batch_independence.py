"""
A sample does not depend on its batch
=====================================

Sample i is a function of (seed, i) only: alone, in a batch of any size, or in parts. Look for the
largest difference of 64 samples on the right, which is 0 or of the size of rounding errors for
every size of the batch.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
whole = sd.sample(law, 64, sde="vp", method="sde", steps=50, seed=0)
sizes = [1, 2, 5, 16, 33, 64]
differences = []
for size in sizes:
    parts = [
        sd.sample(law, min(size, 64 - i), sde="vp", method="sde", steps=50, seed=0, first=i)
        for i in range(0, 64, size)
    ]
    differences.append(float((torch.cat(parts) - whole).abs().max()))
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3))
axes[0].plot(*whole.T, ".")
axes[0].set(title="64 samples", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
axes[1].plot(sizes, differences, "o-")
axes[1].set(xlabel="size of the batch", ylabel="largest difference", ylim=(-1e-7, 1e-6))
