"""
How do I train on tabular data?
===============================

Save the table as floats, one row per sample, and load it with ``sd.data.load``: the data set has a
scale that gives each column mean 0 and standard deviation 1. Train on the encoded rows and decode
the samples. Look for the same range and correlation in both panels.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sdekit_diffusion as sd
import torch

random = np.random.default_rng(0)
height = random.normal(1.7, 0.1, 3000)  # metres
weight = 22 * height**2 * np.exp(0.15 * random.normal(size=3000))  # kilograms
folder = Path(tempfile.mkdtemp())
np.save(folder / "people.npy", np.column_stack([height, weight]))

table = sd.data.load(folder / "people.npy")
torch.manual_seed(0)
net = sd.nets.MLP(shape=(2,), width=64)
model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
sd.fit(model, table, sd.Recipe(steps=400, batch_size=256, lr=2e-3), progress=False)
samples = model.scale.decode(sd.sample(model, 1000, steps=30, seed=0))  # in metres and kilograms

fig, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharex=True, sharey=True)
for ax, x, title in ((axes[0], table.test, "held-out rows"), (axes[1], samples, "samples")):
    ax.plot(*x[:300].T, ".", ms=3)
    ax.set(title=title, xlabel="height (m)")
axes[0].set_ylabel("weight (kg)")

# %%
# Compare moments in the units of the table, and both sets by a distance. ``sampling_floor`` is the
# distance between two sets of real rows: smaller distances cannot be distinguished from it.

print("mean of the table  ", table.train.mean(0).tolist())
print("mean of the samples", samples.mean(0).tolist())
rows = table.scale.encode(table.train).float()
floor = sd.metrics.sampling_floor(sd.metrics.sliced_wasserstein, rows, 1000)
distance = sd.metrics.sliced_wasserstein(table.scale.encode(samples).float(), rows[:1000])
print(f"distance {distance:.3f}, floor {floor.mean:.3f} ± {floor.std:.3f}")

# %%
# **A tensor instead of a file.** Standardise it with ``sd.data.Scale.standard``, give the scale to
# the model, and encode the rows in training.

x = torch.from_numpy(np.load(folder / "people.npy"))
scale = sd.data.Scale.standard(x)
net = sd.nets.MLP(shape=(2,), width=64)
other = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr", scale=scale)
recipe = sd.Recipe(steps=20, batch_size=256)
sd.fit(other, x, recipe, transform=scale.encode, progress=False)

# %%
# **Pitfalls.** Columns of categories are not continuous: train one model with the category as a
# label instead (:doc:`plot_model_labels`). Rows with missing values are refused. The log-density
# of a row in its own units is ``log_likelihood(...).value - scale.log_volume((2,))``.
#
# Reference: :doc:`data </data>`, :doc:`training </training>`, :doc:`metrics </metrics>`.
