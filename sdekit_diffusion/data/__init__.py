"""Data sets: digits, garments, points, files, folders of images, Hugging Face's; and their scale, which a model learns in."""

from sdekit_diffusion.data._dataset import Dataset
from sdekit_diffusion.data._huggingface import from_datasets
from sdekit_diffusion.data._scale import Scale
from sdekit_diffusion.data._sources import load, sources

__all__ = ["Dataset", "Scale", "from_datasets", "load", "sources"]
