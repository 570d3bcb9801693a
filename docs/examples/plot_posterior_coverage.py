"""
Is a posterior right?
=====================

x is drawn from the prior, y observed, and the posterior sampled, 200 times. Of a correct posterior
the ranks of the true x among the samples are uniform (simulation-based calibration); an
approximation alone is too narrow or too wide, and its weights repair it.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from sdekit_diffusion.metrics import sbc

law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [1.0, -0.5]], [0.1, 0.1])
truth = law.sample(200, seed=0)
A = torch.tensor([[1.0, 1.0]])
observation = sd.LinearObservation.simulated(A, truth, 0.05, seed=1)
weighted = sd.sample_posterior(law, observation, 128, particles=128, steps=40, sde="vp", seed=0)
approximate = sd.DPS(law, observation)
index = torch.arange(200).repeat_interleave(128)
alone = sd.sample(approximate.rows(index), len(index), sde="vp", steps=40, method="ddpm", seed=0)
alone = alone.unflatten(0, (200, 128))

levels = torch.linspace(0.05, 0.95, 10).tolist()
fig, ax = plt.subplots(figsize=(4.5, 4.5))
for name, x, log_weights in (
    ("particles", weighted.x, weighted.log_weights),
    ("DPS alone", alone, None),
):
    coverage = sbc(x, truth, log_weights).coverage(levels)
    values, errors = zip(*coverage.values(), strict=True)
    ax.errorbar(levels, values, [2 * e for e in errors], fmt="o-", ms=3, lw=0.8, label=name)
ax.plot([0, 1], [0, 1], color="0.6", lw=0.8)
ax.set(xlabel="nominal coverage", ylabel="coverage of the true x", aspect="equal")
ax.legend()
