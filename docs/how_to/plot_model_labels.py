"""
How do I condition on class labels?
===================================

Build the network with ``classes=``, train on pairs (x, labels), and sample
``model.given(label=...)``. A share of the labels is dropped in training, so that the same network
is also the unconditional model. Look for one cluster per label on the left, and all three on the
right.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

torch.manual_seed(0)
centres = torch.tensor([[-1.0, 0.0], [0.0, 1.2], [1.0, 0.0]])
labels = torch.randint(3, (3000,))
x = centres[labels] + 0.2 * torch.randn(3000, 2)

net = sd.nets.MLP(shape=(2,), width=64, classes=3)
model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
recipe = sd.Recipe(steps=400, batch_size=256, lr=4e-3, ema=0.98, drop=0.25)
sd.fit(model, (x, labels), recipe, progress=False)

fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharex=True, sharey=True)
for label in range(3):
    samples = sd.sample(model.given(label=label), 200, steps=20, seed=0)
    axes[0].plot(*samples.T, ".", ms=3, label=f"label {label}")
axes[0].set(title="one label each", xlabel="$x_1$", ylabel="$x_2$")
axes[0].legend()
samples = sd.sample(model.unconditional(), 600, steps=20, seed=0)
axes[1].plot(*samples.T, ".", ms=3, color="0.4")
axes[1].set(title="unconditional", xlabel="$x_1$")

# %%
# **One label per sample** is a tensor of as many integers as samples:

each = torch.arange(600) % 3
samples = sd.sample(model.given(label=each), 600, steps=20, seed=0)
nearest = torch.cdist(samples, centres).argmin(1)
print(f"{float((nearest == each).float().mean()):.1%} are nearest to the centre of their label")

# %%
# **The likelihood given a label, and a classifier from it:** log p(x | label) for each label, and
# Bayes' rule with equal probabilities of the labels.

points = x[:50]
logs = [sd.log_likelihood(model.given(label=k), points).value for k in range(3)]
probabilities = torch.stack(logs, dim=1).softmax(dim=1)
agree = (probabilities.argmax(1) == labels[:50]).float().mean()
print(f"the most probable label is the true one for {float(agree):.0%} of 50 points")

# %%
# **Other conditions.** A network built with ``context=4`` receives a vector of four numbers for
# each sample, and one with ``image=3`` an image of three channels. The data are then
# ``(x, {"context": c})`` or ``(x, {"image": c})``. Networks of your own take conditions as further
# arguments of their call.
#
# **Pitfalls.** Labels are integers from 0. With ``drop=0`` the unconditional model is not trained,
# and guidance, which needs it, is meaningless. ``sd.sample(model, n)`` without ``given`` samples
# the unconditional model.
#
# Reference: :doc:`training </training>`, :doc:`guidance </guidance>`.
