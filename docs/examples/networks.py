"""The trained network of the examples: trained once, and kept in docs/_cache, or in _cache beside a
copy of this file, until the function that trains it or the version of the package changes.
"""

import hashlib
import inspect
from importlib.metadata import version
from pathlib import Path

import sdekit_diffusion as sd
import torch

HERE = Path(__file__).resolve().parent
CACHE = (HERE.parent if HERE.name == "examples" else HERE) / "_cache"


def digits():
    """A network of scikit-learn's digits with labels, trained for about a minute, and the data."""
    source = sd.data.load("digits")
    folder = folder_of(trained_on_digits)
    if folder.exists():
        return sd.load(folder), source
    model = trained_on_digits(source)
    sd.save(model, folder)
    return model, source


def trained_on_digits(source):
    """The network of `digits`."""
    torch.manual_seed(0)
    net = sd.nets.UNet(channels=1, width=24, classes=10)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(1, 8, 8), conditioning="log_snr")
    recipe = sd.Recipe(steps=1500, batch_size=64, seed=0, drop=0.15)
    sd.fit(model, source, recipe, progress=False)
    return model


def folder_of(training):
    """Where the network of a function is kept: its name has a hash of the function's source."""
    text = f"{version('sdekit')}\n{inspect.getsource(training)}"
    return CACHE / f"{training.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def pixels(x, source):
    """Images in [0, 1], for a picture."""
    return (x[:, 0].clamp(-1, 1) + 1) / 2


def row(axes, images, title=None):
    """Images beside each other."""
    for ax, image in zip(axes, images, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    if title:
        axes[0].set_title(title, loc="left", fontsize=9)
