"""
Digits by class
===============

Samples of a network that was trained with labels, for each label. Samples of a column have the same
noise: look for the slant and the width of the strokes, which they have in common.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import sdekit_diffusion as sd
import torch
from networks import digits
from sdekit_diffusion import plot

model, source = digits()
x_T = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
labels = range(10)
x = [sd.sample(model.given(label=i), 8, x_T=x_T, steps=20, seed=0) for i in labels]
plot.samples(torch.cat(x), columns=8, names=[str(i) for i in labels], black=1, white=-1)
