"""
How do I compare two models with a Bayes factor?
================================================

``sd.sample_posterior`` returns the log evidence, log p(y), with its standard error.
``sd.bayes_factor`` returns the difference of two of them, the log Bayes factor, with its error. It
is positive where the first model explains y better. Look for the samples of each prior near the
line A x = y: the model with more of them there has the larger log p(y).
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

two_modes = sd.GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], [0.1, 0.1])  # or networks
one_mode = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
A = torch.tensor([[1.0, 0.5]])
y = torch.tensor([1.4])
observation = sd.LinearObservation(A, y, covariance=0.05)  # y = A x + N(0, 0.05)

first, second = (
    sd.sample_posterior(model, observation, 1024, sde="vp", steps=50, seed=seed)
    for seed, model in enumerate((two_modes, one_mode))  # independent errors: two seeds
)
factor, stderr = sd.bayes_factor(first, second)
exact = two_modes.log_evidence(observation) - one_mode.log_evidence(observation)
print(f"log Bayes factor {float(factor):.3f} ± {float(stderr):.3f}, exact {float(exact):.3f}")

fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharex=True, sharey=True)
line = torch.linspace(-3.0, 3.0, 2)
for ax, model, posterior in zip(axes, (two_modes, one_mode), (first, second), strict=True):
    ax.plot(*model.sample(500, seed=1).T, ".", ms=2, color="0.7", label="prior")
    ax.plot(*posterior.resampled(300, seed=0).T, ".", ms=3, label="posterior")
    ax.plot(line, (y - line) / 0.5, "k", lw=0.8, label="A x = y")
    ax.set(xlabel="$x_1$", title=f"log p(y) = {float(posterior.log_evidence):.2f}", ylim=(-3, 3))
axes[0].set_ylabel("$x_2$")
axes[0].legend()

# %%
# **From a Bayes factor to probabilities.** With equal prior probabilities of the two models, the
# probability of the first is the logistic function of the log Bayes factor.

print(f"p(first | y) = {float(torch.sigmoid(factor)):.3f}")

# %%
# **Two operators or noise levels** are compared in the same way: one model, two observations of
# the same y.

for covariance in (0.05, 0.5, 2.0):
    other = sd.LinearObservation(A, y, covariance=covariance)
    posterior = sd.sample_posterior(two_modes, other, 1024, sde="vp", steps=50, seed=0)
    stderr = float(posterior.log_evidence_stderr)
    print(f"noise {covariance:4}: log p(y) = {float(posterior.log_evidence):.3f} ± {stderr:.3f}")

# %%
# **Pitfalls.** The error is from the spread of clouds of 128 particles: take eight clouds or more.
# A warning says where log p(y) is unreliable. Both observations must have y in the same units,
# because the evidence is a density of y; and A must fit the units in which each model describes x.
#
# Reference: :doc:`posteriors </posteriors>`.
