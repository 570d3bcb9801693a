"""Models of networks that were trained with other libraries, by an adapter for each of these."""

from sdekit_diffusion._loading.denoiser import from_edm
from sdekit_diffusion._loading.diffusers import from_diffusers
from sdekit_diffusion._loading.ncsnv2 import from_ncsnv2
from sdekit_diffusion._loading.score_sde import from_score_sde

__all__ = ["from_diffusers", "from_edm", "from_ncsnv2", "from_score_sde"]
