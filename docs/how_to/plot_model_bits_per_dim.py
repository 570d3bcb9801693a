"""
How do I compute bits per dimension with a standard error?
==========================================================

Give ``sd.bits_per_dim`` integer images and the range of numbers to which the model maps them. It
dequantises them, and returns the value of each image, the mean, and the standard error of the mean.
Look for the spread over images, which is much larger than the error of the mean.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

# sphinx_gallery_start_ignore
import sys

sys.path.append(sys.path[0] + "/../examples")  # networks.py, where this is run by hand
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
from networks import digits

model, data = digits()  # a network of 8 x 8 digits
model = model.unconditional()
scale = data.scale
settings = {"low": scale.low, "high": scale.high, "levels": scale.levels}
coarse = sd.AdaptiveFlow(1e-2, 1e-2)
bits = sd.bits_per_dim(model, data.test[:60], method=coarse, **settings)
print(f"{float(bits.mean):.3f} ± {float(bits.mean_stderr):.3f} bits per dimension")

fig, ax = plt.subplots(figsize=(5, 3))
ax.hist(bits.value, bins=15, color="0.7")
ax.axvline(bits.mean, color="k")
ax.axvspan(bits.mean - 2 * bits.mean_stderr, bits.mean + 2 * bits.mean_stderr, alpha=0.3)
ax.set(xlabel="bits per dimension", ylabel="images", title="60 images; mean, two standard errors")

# %%
# **What the error covers.** The spread of images, the dequantisation and the probes; more images
# reduce all three. The error of the solver is not in it. Lower the tolerance and compare:

few = data.test[:10]
for tolerance in (1e-2, 1e-3):
    method = sd.AdaptiveFlow(tolerance, tolerance)
    again = sd.bits_per_dim(model, few, method=method, **settings)
    print(f"tolerance {tolerance:g}: {float(again.mean):.4f} (10 images)")

# %%
# **Pitfalls.** ``levels`` is the number of pixel levels, 17 for these digits and 256 for bytes.
# Floats must be dequantised already. Published values are comparable only for the same images,
# levels and crop. Take held-out images: those of the training set may have fewer bits.
#
# Reference: :doc:`likelihoods </likelihood>`. The gallery has :doc:`bits per dimension with and
# without labels </gallery/plot_bits_per_dim>`.
