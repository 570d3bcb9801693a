"""
Digits by class
===============

A network that was trained with labels, asked for each of them. Samples of a column share their
noise: look for the slant and the width of a stroke that go with it.
"""

import sdekit_diffusion as sd
import torch
from networks import digits
from sdekit_diffusion import plot

model, source = digits()
x_T = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
labels = range(10)
x = [sd.sample(model.given(label=i), 8, x_T=x_T, steps=20, seed=0) for i in labels]
plot.samples(torch.cat(x), columns=8, names=[str(i) for i in labels])
