"""
How do I classify with a diffusion model?
=========================================

``sd.classify`` computes p(class | x) by Bayes' rule, from one model per class and without a
classifier: the class whose model predicts the noise best is the most probable one. Look for
the boundary between the classes on the left, and on the right for points on the diagonal: each
bar is two standard errors.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = [  # exact models of two classes; for a network [model.given(label=k) for k in range(2)]
    sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [0.5, 1.0]], [0.1, 0.1]),
    sd.GaussianMixture([1.0], [[0.2, 0.0]], [0.3]),
]
points = torch.cat([law[0].sample(100, seed=0), law[1].sample(100, seed=1)])
labels = torch.arange(2).repeat_interleave(100)

result = sd.classify(law, points, sde="vp", draws=8, levels=16, seed=0)
exact = torch.stack([model.log_prob(points) for model in law], dim=1).softmax(dim=1)
print(f"{float((result.label == labels).float().mean()):.1%} have the label of their class,")
print(f"{float((exact.argmax(1) == labels).float().mean()):.1%} by the exact densities")

fig, axes = plt.subplots(1, 2, figsize=(7, 3.2))
x, y = torch.meshgrid(torch.linspace(-2, 2, 25), torch.linspace(-1.6, 2, 25), indexing="xy")
grid = torch.stack([x.flatten(), y.flatten()], dim=1)
shade = sd.classify(law, grid, sde="vp", seed=0).probability[:, 1].reshape(x.shape)
axes[0].contourf(x, y, shade, levels=10, cmap="coolwarm", alpha=0.6)
axes[0].scatter(*points.T, s=4, c=labels, cmap="coolwarm")
axes[0].set(xlabel="$x_1$", ylabel="$x_2$", title="probability of the second class")
bar = 2 * result.stderr[:, 1]
axes[1].errorbar(exact[:, 1], result.probability[:, 1], bar, fmt=".", ms=3, lw=0.6)
axes[1].axline((0, 0), slope=1, color="0.6", lw=0.8)
axes[1].set(xlabel="exact", ylabel="classify, two standard errors", title="p(second class | x)")

# %%
# **The standard error** comes from the draws, random noise levels and noise. More draws or levels
# make it smaller:

for draws, levels in ((4, 8), (8, 16), (16, 32)):
    found = sd.classify(law, points, sde="vp", draws=draws, levels=levels, seed=0)
    error = (found.probability - exact)[:, 1].square().mean().sqrt()
    stated = found.stderr[:, 1].square().mean().sqrt()
    calls = 2 * draws * levels
    print(f"{calls:5} evaluations of each class: error {error:.3f}, standard error {stated:.3f}")

# %%
# **Classes of different frequency**: ``log_weights`` is log p(class), here one in four and three in
# four.

rare = sd.classify(law, points[:3], sde="vp", log_weights=torch.tensor([0.25, 0.75]).log())
print("p(first class | x)", [round(p, 2) for p in rare.probability[:, 0].tolist()])

# %%
# **Pitfalls.** The models of all classes need the same data scale, and a network of labels is
# evaluated once per class. In few dimensions ``sd.log_likelihood`` of each class gives log p(x |
# class) without random error, as in :doc:`plot_model_labels`. The probabilities are those of the
# models: where these are wrong, so are the probabilities, which the standard error does not show.
#
# Reference: :doc:`likelihood </likelihood>`.
