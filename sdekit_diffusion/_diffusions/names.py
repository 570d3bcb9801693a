"""All diffusions by name. A new one is added to `DIFFUSIONS` and `__all__`, from which the exports
of the package, the help of the command line and the tests are derived.
"""

from sdekit import did_you_mean
from sdekit_diffusion._diffusions.cosine import CosineVPSDE
from sdekit_diffusion._diffusions.ddpm import DDPM
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.edm import EDMSDE
from sdekit_diffusion._diffusions.flow import RectifiedFlow
from sdekit_diffusion._diffusions.ncsn import NCSN
from sdekit_diffusion._diffusions.ve import VESDE
from sdekit_diffusion._diffusions.vp import VPSDE, SubVPSDE

DIFFUSIONS: dict[str, type[AbstractDiffusion]] = {
    "ve": VESDE,
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "cosine": CosineVPSDE,
    "edm": EDMSDE,
    "flow": RectifiedFlow,
    "ddpm": DDPM,
    "ncsn": NCSN,
}
__all__ = [
    "DDPM",
    "DIFFUSIONS",
    "EDMSDE",
    "NCSN",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "RectifiedFlow",
    "SubVPSDE",
]

# Names of classes, and those in papers, for suggestions in messages.
_PUBLISHED_NAMES = {
    "vpsde": "vp", "vp_sde": "vp", "vesde": "ve", "ve_sde": "ve", "subvpsde": "subvp",
    "sub_vp": "subvp", "sub_vpsde": "subvp", "sub_vp_sde": "subvp", "cosinevpsde": "cosine",
    "edmsde": "edm", "karras": "edm", "rectifiedflow": "flow", "rectified_flow": "flow",
    "flow_matching": "flow", "rf": "flow", "smld": "ncsn", "linear": "vp",
}  # fmt: skip


def diffusion(sde: AbstractDiffusion | str) -> AbstractDiffusion:
    """A diffusion from its name, with its default parameters; a diffusion is returned as it is.

    Raises:
        TypeError: for what is neither, such as the class of a diffusion.
        ValueError: for an unknown name.
    """
    if isinstance(sde, AbstractDiffusion):
        return sde
    if isinstance(sde, type):
        raise TypeError(f"sde is an object, {sde.__name__}(...), not the class")
    if not isinstance(sde, str):
        raise TypeError(f"sde is a name such as 'vp', or a diffusion such as VPSDE(), not {sde!r}")
    if sde not in DIFFUSIONS:
        raise ValueError(
            f"unknown sde {sde!r}; choose one of {', '.join(DIFFUSIONS)}, or pass a diffusion such "
            f"as VPSDE(){did_you_mean(sde, DIFFUSIONS, _PUBLISHED_NAMES)}"
        )
    return DIFFUSIONS[sde]()
