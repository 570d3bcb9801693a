"""
How do I edit an image with SDEdit?
===================================

Start a solve from the image with noise instead of from the prior: ``start=sd.Noised(x, strength)``.
This is SDEdit (image to image). Look for what is left of the drawing as the strength increases,
from top to bottom.

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
from networks import digits, pixels, row

model, data = digits()  # a network of 8 x 8 digits with labels
drawing = -torch.ones(1, 1, 8, 8)
drawing[..., 1:7, 3:5] = 0.9  # a rough bar, with a foot
drawing[..., 6, 1:7] = 0.9
strengths = [0.1, 0.2, 0.4, 0.8]

fig, axes = plt.subplots(4, 8, figsize=(6, 3.4))
for line, strength in zip(axes, strengths, strict=True):
    start = sd.Noised(drawing, strength=strength)
    x = sd.sample(model.unconditional(), 7, start=start, method="sde", steps=30, seed=0)
    row(line, pixels(torch.cat([drawing, x]), data), f"strength {strength}")

# %%
# On the left is the drawing, then seven edits of it. The root mean square distance of edits from
# it, where pixels are from -1 to 1:

for strength in strengths:
    start = sd.Noised(drawing, strength=strength)
    x = sd.sample(model.unconditional(), 20, start=start, method="sde", steps=20, seed=0)
    print(f"strength {strength}: {float((x - drawing).square().mean().sqrt()):.2f}")

# %%
# **Towards a class.** Any model can be used, also one given a label or a guided one:

start = sd.Noised(drawing, strength=0.6)
fig, axes = plt.subplots(2, 8, figsize=(6, 1.8))
for line, label in zip(axes, (1, 2), strict=True):
    guided = sd.Guided(model.given(label=label), 2.0)
    x = sd.sample(guided, 7, start=start, method="sde", steps=30, seed=0)
    row(line, pixels(torch.cat([drawing, x]), data), f"label {label}")

# %%
# **The same noise under every diffusion.** ``strength`` is a share of the diffusion's own grid,
# which for most is its time; ``level`` is the noise :math:`\sigma / \alpha` in standard deviations
# of the data.

for sde in ("vp", "cosine", "ve"):
    start = sd.Noised(drawing, level=1.0)
    settings = {"sde": sde, "start": start, "method": "sde", "steps": 20, "seed": 0}
    x = sd.sample(model.unconditional(), 20, **settings)
    print(f"{sde:6} level 1: {float((x - drawing).square().mean().sqrt()):.2f}")

# %%
# **Pitfalls.** Methods without noise, such as the default, also work, but only those with noise
# give samples of :math:`p(x_0 | x_t)`. The number of steps is that of the rest of the range, not
# of the whole: it costs the same at every strength. Images must be in the model's scale.
#
# Reference: :doc:`editing </editing>`.
