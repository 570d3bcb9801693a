"""
Which of two models explains y better?
======================================

Two priors of x, and y = x_1 + x_2 + noise. `sample_posterior` returns log p(y) with its standard
error, and `bayes_factor` compares two of them. The exact values are known for mixtures. Look for
dots on the exact curve; where it is above 0 the narrow prior explains y better.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

narrow = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.05, 0.05])
wide = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
A = torch.tensor([[1.0, 1.0]])
ys = torch.linspace(-3.0, 3.0, 9)
factors = []
for y in ys:
    observation = sd.LinearObservation(A, y[None], covariance=0.1)
    parts = [
        sd.sample_posterior(law, observation, 1024, sde="vp", seed=seed, steps=50)
        for seed, law in enumerate((narrow, wide))  # independent errors: two seeds
    ]
    factors.append(sd.bayes_factor(*parts))
values, errors = (torch.stack(list(part)) for part in zip(*factors, strict=True))
fine = torch.linspace(-3.0, 3.0, 100)
exact = [
    narrow.log_evidence(o) - wide.log_evidence(o)
    for o in (sd.LinearObservation(A, y[None], covariance=0.1) for y in fine)
]
fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(fine, exact, color="0.6", label="exact")
ax.errorbar(ys, values, 2 * errors, fmt="o", ms=4, label="from particles, two standard errors")
ax.axhline(0, color="k", lw=0.5)
ax.set(xlabel="y", ylabel="log p(y | narrow) - log p(y | wide)")
ax.legend()
