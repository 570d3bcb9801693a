"""
How do I infer the parameters of a simulator?
=============================================

Draw parameters from the prior, simulate, and train a network whose context is the simulated data:
it is then the posterior of the parameters given any observation (simulation-based inference). No
likelihood is needed. Look for the true parameters within the samples of the posterior, which is
much narrower than the prior.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

torch.manual_seed(0)
times = torch.linspace(0.0, 3.0, 6)


def simulate(theta):  # noisy decay: theta is the logarithm of an amplitude and of a rate
    amplitude = theta[:, :1].exp()
    rate = theta[:, 1:].exp()
    return amplitude * torch.exp(-rate * times) + 0.1 * torch.randn(len(theta), 6)


theta = 0.5 * torch.randn(20_000, 2)  # the prior
x = simulate(theta)
mean = x.mean(0)
std = x.std(0)
pairs = (theta, {"context": (x - mean) / std})

net = sd.nets.MLP(shape=(2,), width=64, context=6)
model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
recipe = sd.Recipe(steps=400, batch_size=256, lr=3e-3, weighting="likelihood", drop=0.0)
sd.fit(model, pairs, recipe, progress=False)

true_theta = torch.tensor([[0.4, -0.3]])
observed = simulate(true_theta)
context = (observed - mean) / std
samples = sd.sample(model.given(context=context.expand(1000, -1)), 1000, steps=30, seed=0)

fig, axes = plt.subplots(1, 2, figsize=(7, 3.2))
axes[0].plot(*theta[:1000].T, ".", ms=2, color="0.8", label="prior")
axes[0].plot(*samples.T, ".", ms=2, label="posterior")
axes[0].plot(*true_theta.T, "kx", label="true parameters")
axes[0].set(xlabel="log amplitude", ylabel="log rate")
axes[0].legend(markerscale=2)
curves = samples[:50, :1].exp() * torch.exp(-samples[:50, 1:].exp() * times)
axes[1].plot(times, curves.T, color="C0", alpha=0.2)
axes[1].plot(times, observed[0], "ko", label="observation")
axes[1].set(xlabel="time", ylabel="x", title="curves of posterior parameters")
axes[1].legend()

# %%
# **Is it correct?** Draw parameters from the prior, simulate, and sample the posterior of each: the
# ranks of the true parameters among the samples are uniform if the posteriors are correct. A small
# p-value shows that they are not correct.

new = 0.5 * torch.randn(100, 2)
rows = ((simulate(new) - mean) / std).repeat_interleave(50, dim=0)
many = sd.sample(model.given(context=rows), len(rows), steps=20, seed=1).unflatten(0, (100, 50))
print(sd.metrics.sbc(many, new))

# %%
# **Log posterior densities** come with the model too, one for each row:

values = sd.log_likelihood(model.given(context=context.expand(3, -1)), samples[:3]).value
print("log p(theta | x):", values.tolist())

# %%
# **Pitfalls.** Standardise the context. With few simulations stop early, by the loss on held-out
# pairs. If the prior has bounds, reject samples outside them. For an observation unlike all
# simulations the posterior is meaningless, and no check of ranks shows this: compare ``simulate``
# of the samples with the observation.
#
# Reference: :doc:`simulation-based inference </inference>`, :doc:`metrics </metrics>`.
