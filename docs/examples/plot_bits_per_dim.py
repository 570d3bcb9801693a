"""
Bits per dimension, with and without labels
===========================================

The code length of held-out digits, with their labels and without. The first is smaller, because a
label has information about the image. Dots are images, and the numbers are means with their
standard errors. Look for the dots below the diagonal, which are nearly all: for these images the
label saves bits.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
from networks import digits

model, source = digits()
images = source.test[:100]
labels = source.test_labels[:100]
coarse = sd.AdaptiveFlow(1e-3, 1e-3)
settings = {"low": -1, "high": 1, "levels": 17, "method": coarse, "seed": 0}
given = sd.bits_per_dim(model.given(label=labels), images, **settings)
alone = sd.bits_per_dim(model.unconditional(), images, **settings)
fig, ax = plt.subplots(figsize=(4.5, 4.5))
ax.plot(alone.value, given.value, ".", ms=4)
low = float(given.value.min())
high = float(alone.value.max())
ax.plot([low, high], [low, high], color="0.6", lw=0.8)
ax.set(
    xlabel=f"without labels: {float(alone.mean):.3f} ± {float(alone.mean_stderr):.3f}",
    ylabel=f"with labels: {float(given.mean):.3f} ± {float(given.mean_stderr):.3f}",
    title="bits per dimension",
)
