"""
How do I guide with a weaker model, or with a classifier?
=========================================================

``sd.Guided(model, w, by=weaker)`` moves samples away from what a smaller or less trained network
predicts (autoguidance); ``sd.ClassifierGuided`` moves them to where a classifier of noisy samples
finds its class. Here the model blurs a narrow arc, in grey. Look for the samples beside the arc,
which guidance by the weaker model brings back to it, and for guidance by the model without its
label, which moves samples away from the other class instead.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

angles = torch.linspace(0.0, 3.0, 40)
arc = torch.stack([angles.cos(), angles.sin()], dim=1)  # the class that is drawn
other = torch.stack([0.9 - angles.cos(), 0.35 - angles.sin()], dim=1)


def blurred(points, std):
    """An exact model of points with normal noise, in place of a network trained on them."""
    return sd.EmpiricalMixture(points, std=std)


model = blurred(arc, 0.15)  # or model.given(label=0) of a network
weaker = blurred(arc, 0.4)  # or a small network, or one from an earlier checkpoint
unconditional = blurred(torch.cat([arc, other]), 0.15)

x_T = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
laws = {
    "w = 1": model,
    "w = 2, by the unconditional": sd.Guided(model, 2.0, by=unconditional),
    "w = 2, by a weaker model": sd.Guided(model, 2.0, by=weaker),
}
fig, axes = plt.subplots(1, 3, figsize=(8, 2.4), sharex=True, sharey=True)
for ax, (name, law) in zip(axes, laws.items(), strict=True):
    x = sd.sample(law, x_T=x_T, sde="vp", steps=30)
    away = torch.cdist(x, arc).min(dim=1).values.square().mean().sqrt()
    print(f"{name:28} distance from the arc {float(away):.3f}, spread {float(x.std(0).sum()):.2f}")
    ax.plot(*arc.T, color="0.7", lw=4)
    ax.plot(*other.T, color="0.9", lw=4)
    ax.plot(*x.T, ".", ms=2)
    ax.set(title=name, xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")

# %%
# Spread is the sum of the standard deviations of both coordinates: it falls where samples lose
# their variety.
#
# **By a classifier.** ``log_prob(x, t, y)`` is log p(y given x_t), from a classifier that was
# trained on noisy samples, or exact as here. The exact one is the same as guidance by the
# unconditional model:

vp = sd.VPSDE()


def log_prob(x, t, y):
    """Of the arc, given x_t = alpha x_0 + sigma noise."""
    spread = (vp.alpha(t) ** 2 * 0.15**2 + vp.sigma(t) ** 2)[:, None]
    points = torch.cat([arc, other])
    squares = (x[:, None] - vp.alpha(t)[:, None, None] * points).square().sum(dim=2)
    return torch.log_softmax(-squares / (2 * spread), dim=1)[:, : len(arc)].logsumexp(dim=1)


guided = sd.ClassifierGuided(unconditional, log_prob, torch.zeros(400), 2.0, classifier_sde=vp)
classified = sd.sample(guided, x_T=x_T, sde="vp", steps=30)
free = sd.sample(laws["w = 2, by the unconditional"], x_T=x_T, sde="vp", steps=30)
difference = (classified - free).square().mean().sqrt()
print(f"by the classifier and by the unconditional model: difference {float(difference):.3f}")

# %%
# **Pitfalls.** The weaker model must be trained on the same data and conditions, and be wrong in
# the same way, only more so; other data move samples elsewhere. Two networks take two calls. A
# classifier of clean samples does not know noisy ones: train it on them.
#
# Reference: :doc:`guidance </guidance>`, :doc:`plot_model_guidance_scale`.
