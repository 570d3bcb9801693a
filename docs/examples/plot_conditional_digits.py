"""
Digits by class
===============

A network that was trained with labels, asked for each of them. Samples of a column share their
noise: look for the slant and the width of a stroke that go with it.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

model, source = digits()
fig, axes = plt.subplots(10, 8, figsize=(4, 5))
x_T = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
for label in range(10):
    x = sd.sample(model.given(label=label), 8, x_T=x_T, steps=20, seed=0)
    row(axes[label], pixels(x, source))
