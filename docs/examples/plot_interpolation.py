"""
Between two digits
==================

The flow maps each image to a latent and back. Points on the great circle between two latents decode
to images between two digits; a mixture of pixels is shown below. Look at the middle: above, one
digit as dark as the ends, and below two pale digits over each other.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

model, source = digits()
model = model.unconditional()
of_class = [int((source.test_labels == label).nonzero()[0]) for label in (0, 7)]
x = model.scale.encode(source.test[of_class], 0.5).float()
coarse = sd.AdaptiveFlow(1e-3, 1e-3)
between = sd.interpolate(model, x[:1], x[1:], 9, method=coarse)[:, 0]
theta = torch.linspace(0, 1, 9)[:, None, None, None]
fig, axes = plt.subplots(2, 9, figsize=(7, 1.9))
row(axes[0], pixels(between, source), "between latents")
row(axes[1], pixels((1 - theta) * x[:1] + theta * x[1:], source), "between pixels")
