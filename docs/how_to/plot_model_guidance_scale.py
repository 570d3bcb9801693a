"""
How do I choose a guidance scale?
=================================

Sample at several scales with the same noise, and measure two things: how often samples agree with
their label, and how varied they are. Look for the first, which rises with w, and for the second,
which falls below that of the data. Take the smallest scale whose samples agree well enough.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

# sphinx_gallery_start_ignore
import sys

sys.path.append(sys.path[0] + "/../examples")  # networks.py, where this is run by hand
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits
from sklearn.neighbors import KNeighborsClassifier

model, data = digits()  # a network of 8 x 8 digits with labels
pixels = data.scale.encode(data.train).float()
classifier = KNeighborsClassifier(3).fit(pixels.flatten(1), data.labels)
label = torch.arange(100) % 10


def within_class(x, label):
    """The standard deviation of a pixel within a class."""
    variances = [x[label == k].var(0).mean() for k in range(10)]
    return float(torch.stack(variances).mean().sqrt())


scales = [0.0, 1.0, 2.0, 4.0]
agreement = []
spread = []
for w in scales:
    x = sd.sample(sd.Guided(model.given(label=label), w), 100, steps=12, seed=0)
    agreement.append(float((classifier.predict(x.flatten(1)) == label.numpy()).mean()))
    spread.append(within_class(x, label))

fig, axes = plt.subplots(1, 2, figsize=(7, 3))
axes[0].plot(scales, agreement, "o-")
axes[0].set(xlabel="guidance scale w", ylabel="share that agrees with its label")
axes[1].plot(scales, spread, "o-")
axes[1].axhline(within_class(pixels, data.labels), color="0.6", lw=0.8, label="the data")
axes[1].set(xlabel="guidance scale w", ylabel="standard deviation within a class", ylim=0)
axes[1].legend()

# %%
# w = 0 is the unconditional model, 1 the conditional one without guidance. The numbers:

for w, share, deviation in zip(scales, agreement, spread, strict=True):
    print(f"w = {w:3}: {share:4.0%} agree, standard deviation {deviation:.3f}")

# %%
# **Less loss of variety.** ``interval`` applies the scale only where :math:`\sigma / \alpha` is
# between two numbers, and ``rescale`` brings the standard deviation of the network's output back
# towards that at w = 1.

for settings in ({}, {"interval": (0.2, 3.0)}, {"rescale": 0.7}):
    guided = sd.Guided(model.given(label=label), 4.0, **settings)
    x = sd.sample(guided, 100, steps=12, seed=0)
    share = (classifier.predict(x.flatten(1)) == label.numpy()).mean()
    summary = f"{share:.0%} agree, standard deviation {within_class(x, label):.3f}"
    print(f"w = 4, {settings or 'no more settings'}: {summary}")

# %%
# **Pitfalls.** diffusers' ``guidance_scale`` is w; papers that write :math:`(1 + w') D_c - w' D_u`
# have :math:`w' = w - 1`. Large scales make the equation stiff: take more steps. The network must
# have been trained with some labels dropped.
#
# Reference: :doc:`guidance </guidance>`.
