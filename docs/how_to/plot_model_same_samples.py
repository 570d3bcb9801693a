"""
How do I get reproducible samples for any batch size?
=====================================================

Give a seed, and number the samples: ``first`` is the number of the first one. Sample i depends on
(seed, i) and on nothing else, so batches of any size make the same samples.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

model = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
settings = {"sde": "vp", "method": "sde", "steps": 50, "seed": 7}
whole = sd.sample(model, 60, **settings)
parts = [sd.sample(model, 20, first=first, **settings) for first in (0, 20, 40)]

fig, ax = plt.subplots(figsize=(4.5, 3.4))
ax.plot(*whole.T, "o", ms=7, mfc="none", label="60 at once")
for i, part in enumerate(parts):
    ax.plot(*part.T, ".", ms=3, label=f"samples {20 * i} to {20 * i + 19}")
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="each circle has a point in it")
ax.legend(fontsize=8)

# %%
# The differences, and one sample computed alone:

print("largest difference", float((torch.cat(parts) - whole).abs().max()))
alone = sd.sample(model, 1, first=42, **settings)
print("sample 42 alone   ", float((alone[0] - whole[42]).abs().max()))

# %%
# **Less memory.** ``batch_size`` computes the samples in parts within one call.

again = sd.sample(model, 60, batch_size=16, **settings)
print("in parts of 16    ", float((again - whole).abs().max()))

# %%
# **The same noise with more steps.** With ``noise="path"`` all grids read one Brownian path per
# sample: more steps refine the same sample of the reverse SDE. Without it the noise of another
# grid differs.

for noise in ("white", "path"):
    settings = {"sde": "vp", "method": "sde", "seed": 7, "noise": noise}
    coarse = sd.sample(model, 60, steps=50, **settings)
    fine = sd.sample(model, 60, steps=100, **settings)
    print(f"noise={noise!r}: 50 and 100 steps differ by {float((fine - coarse).abs().mean()):.3f}")

# %%
# **Pitfalls.** Without ``seed`` each call draws new noise. Networks multiply matrices, and another
# batch size may round these differently: the samples then agree up to rounding.
# In networks that mix the rows of a batch, such as by batch normalisation in training mode, samples
# would depend on the batch; ``sample`` puts networks into evaluation mode.
#
# Reference: :doc:`samplers </samplers>`, :doc:`many samples, many processes </scaling>`.
