"""Data sets from arrays, files, folders and Hugging Face, and the map from data to model inputs.

Example:
    >>> data = sd.data.load("moons")
    >>> data.train.shape[1:]
    torch.Size([2])
"""

from sdekit_diffusion.data._dataset import Dataset
from sdekit_diffusion.data._huggingface import from_datasets
from sdekit_diffusion.data._scale import Scale
from sdekit_diffusion.data._sources import load, sources

__all__ = ["Dataset", "Scale", "from_datasets", "load", "sources"]
