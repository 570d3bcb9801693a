"""
How do I train on my own images?
================================

Put png or jpg images of one size into a folder and give its path to ``sd.data.load``. Build a
network for their number of channels, and call ``sd.fit`` with a folder for the run. Look at the
second row: after a short training run the samples only begin to resemble the images of the first.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from PIL import Image
from sdekit_diffusion import plot
from sklearn.datasets import load_digits

own = Path(tempfile.mkdtemp())
for i, image in enumerate(load_digits().images[:600]):  # stands for your images
    Image.fromarray((image * 15.9).astype("uint8")).save(own / f"{i:03}.png")

images = sd.data.load(own)  # nine tenths to train on, one tenth held out
torch.manual_seed(0)
net = sd.nets.UNet(channels=images.train.shape[1], width=16)
shape = tuple(images.train.shape[1:])
model = sd.ScoreModel(net, "vp", "velocity", shape=shape, conditioning="log_snr")
run = Path(tempfile.mkdtemp()) / "run"
records = sd.fit(model, images, sd.Recipe(steps=120, batch_size=32), folder=run, progress=False)

model = sd.load(run)
x = sd.sample(model, 10, steps=20, seed=0)
samples = model.scale.decode(x)  # bytes again, as in the files
fig, axes = plt.subplots(2, 1, figsize=(7, 1.8))
plot.samples(images.test[:10], columns=10, names=["held-out"], black=255, white=0, ax=axes[0])
plot.samples(samples, columns=10, names=["samples"], black=255, white=0, ax=axes[1])

# %%
# These are samples after 120 updates; good samples need a longer training run. The shape of the
# data set, and the mean loss of the first and the last 20 updates:

print(tuple(images.train.shape), images.train.dtype, images.scale.levels, "levels")
losses = torch.stack([record.loss for record in records])
print(f"loss {float(losses[:20].mean()):.3f} at first, {float(losses[-20:].mean()):.3f} at the end")

# %%
# **Arrays and tensors.** Save integers as ``.npy`` or ``.npz``: they are images, (N, H, W), (N, C,
# H, W) or (N, H, W, C). An ``.npz`` may also hold ``labels``, ``test`` and ``test_labels``. Or
# encode a tensor yourself:

pixels = images.train  # uint8, (N, C, H, W)
scale = sd.data.Scale.quantised(levels=256)
net = sd.nets.UNet(channels=1, width=16)
other = sd.ScoreModel(net, "vp", "velocity", shape=shape, conditioning="log_snr", scale=scale)
recipe = sd.Recipe(steps=2, batch_size=16)
sd.fit(other, pixels, recipe, transform=scale.encode, progress=False)

# %%
# **Classes.** Sub-folders, each image in one, are classes: see :doc:`plot_model_labels`. Folders
# ``train`` and ``test`` are the two sets.
#
# **Pitfalls.** All images need the same size and mode (grey or RGB). Train on integers and not on a
# normalised float array: floats are taken as continuous data, and bits per dimension then have no
# meaning. Mirrored copies are made by ``Recipe(flip=True)``. Folders larger than 1 GiB are
# read from the disk as they are needed.
#
# Reference: :doc:`data </data>`, :doc:`training </training>`, :doc:`networks </networks>`.
