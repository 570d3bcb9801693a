"""
How do I draw a million samples with several processes?
=======================================================

``sd.Shards`` computes samples in parts, one file each, and skips the parts that are there already.
Start the same script with ``torchrun``, and the processes share the parts. Sample i depends on
(seed, i), so the number of processes changes nothing. The picture is drawn part by part: look for
the two modes of the law.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sdekit_diffusion as sd

model = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])  # or your own
folder = Path(tempfile.mkdtemp()) / "samples.shards"  # a fixed folder, in your script


def draw(first, count):
    return {"x": sd.sample(model, count, sde="vp", steps=20, seed=0, first=first)}


shards = sd.Shards(folder, n=20_000, batch_size=5_000, settings={"seed": 0, "steps": 20})
shards.fill(draw, progress=False)  # 1,000,000 in the same way
print(sorted(path.name for path in folder.iterdir()))

counts = np.zeros((80, 80))
for part in shards:  # one part in memory at a time
    counts += np.histogram2d(*part["x"].T, bins=80, range=[[-2, 2.5], [-1, 2]])[0]
fig, ax = plt.subplots(figsize=(4.5, 3.2))
picture = ax.imshow(counts.T, origin="lower", extent=(-2, 2.5, -1, 2), aspect="auto")
fig.colorbar(picture, label="samples per cell")
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="20,000 samples, part by part")

# %%
# **With four processes:** ``torchrun --nproc-per-node 4 script.py``. For a model that was trained
# into the folder RUN, the command line does all of this: ``torchrun --nproc-per-node 4 -m --
# sdekit_diffusion sample RUN --n 1000000 --out x.npz``.
#
# **After a kill** the same script computes what is missing. Here one part is lost:

lost = sorted(folder.glob("*.npz"))[1]
lost.unlink()
computed = []


def counted(first, count):
    computed.append(first)
    return draw(first, count)


shards.fill(counted, progress=False)
print("computed again: samples from", computed)

# %%
# **Other settings are refused**, so that a folder holds samples of one kind:

other = sd.Shards(folder, n=20_000, batch_size=5_000, settings={"seed": 1, "steps": 20})
try:
    other.fill(draw, progress=False)
except ValueError as problem:
    print(str(problem).replace(str(folder), "FOLDER"))

# %%
# **Pitfalls.** List in ``settings`` all that the samples depend on, with a name for the weights.
# Machines must share the folder. Another batch size can change the rounding of a network's matrix
# products.
#
# Reference: :doc:`many samples, many processes </scaling>`.
