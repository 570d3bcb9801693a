"""
Errors of samplers at few evaluations
=====================================

The distance of the end of each solve from the end of the exact flow, for the same noise. The slope
of a line is the order of convergence; the default combines rules of different orders. Look for its
line, which is the lowest.
"""

import matplotlib.pyplot as plt
import sdekit
import sdekit_diffusion as sd
import torch

torch.manual_seed(0)
means = 2 * torch.randn(6, 2, dtype=torch.float64)
law = sd.GaussianMixture(torch.full((6,), 1 / 6), means, torch.full((6,), 0.05))
x_T = torch.randn(200, 2, dtype=torch.float64)
careful = sd.AdaptiveFlow(1e-10, 1e-10, solver=sdekit.Dopri8())
exact = sd.sample(law, 200, sde="vp", method=careful, x_T=x_T, seed=0)

counts = [5, 8, 12, 20, 35, 50, 100]
fig, ax = plt.subplots(figsize=(6, 4))
for method in ("ddim", "heun", "dpmpp_2m", "unipc", "deis", "default"):
    errors = []
    for n in counts:
        steps = n // 2 if method == "heun" else n
        x = sd.sample(law, 200, sde="vp", method=method, steps=steps, x_T=x_T, seed=0)
        errors.append(float((x - exact).norm(dim=1).square().mean().sqrt()))
    bold = {"lw": 2.5, "color": "k"} if method == "default" else {}
    ax.loglog(counts, errors, "o-", ms=3, label="the default" if bold else method, **bold)
ax.set(xlabel="evaluations per sample", ylabel="root mean square error")
ax.legend()
