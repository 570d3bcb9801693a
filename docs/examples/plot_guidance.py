"""
The scale of guidance
=====================

w = 0 is the unconditional model, 1 the conditional one; beyond it samples become more typical, and
more alike. The same noise at each scale, for the digit 8.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

model, source = digits()
x_T = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
scales = (0.0, 1.0, 2.0, 4.0)
fig, axes = plt.subplots(len(scales), 10, figsize=(7, 3.6))
for w, line in zip(scales, axes, strict=True):
    guided = sd.Guided(model.given(label=8), w)
    row(line, pixels(sd.sample(guided, 10, x_T=x_T, steps=30, seed=0), source), f"w = {w:g}")
