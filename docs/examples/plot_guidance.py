"""
Guidance scale
==============

w = 0 is the unconditional model, 1 the conditional one; with larger w samples become more typical,
and more alike. Each column has the same noise at all scales; the digit is 8. Look down a column:
any digit at w = 0 becomes an 8 as w grows, and the images of the last row hardly differ.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import sdekit_diffusion as sd
import torch
from networks import digits
from sdekit_diffusion import plot

model, source = digits()
x_T = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
scales = (0.0, 1.0, 2.0, 4.0)
eight = model.given(label=8)
x = [sd.sample(sd.Guided(eight, w), 10, x_T=x_T, steps=30, seed=0) for w in scales]
plot.samples(torch.cat(x), columns=10, names=[f"w = {w:g}" for w in scales], black=1, white=-1)
