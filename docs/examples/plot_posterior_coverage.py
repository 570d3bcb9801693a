"""
Coverage of a posterior
=======================

x is drawn from the prior, y observed, and the posterior sampled, 200 times. For a correct posterior
the ranks of the true x among the samples are uniform (simulation-based calibration). So credible
intervals of each level contain the true x as often as the level states, which is the diagonal. An
approximation alone can be too narrow or too wide, and weights correct it. Look for the distance
from the diagonal: the curve of DPS alone is below it, so its posteriors are too narrow.
"""

import sdekit_diffusion as sd
import torch
from sdekit_diffusion import plot
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

checks = {
    "particles": sbc(weighted.x, truth, weighted.log_weights),
    "DPS alone": sbc(alone, truth),
}
plot.calibration(checks)
