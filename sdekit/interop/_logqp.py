"""torchsde's logqp: the divergence of an equation from a prior, as one more coordinate."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-7  # torchsde divides by this number, with the sign of g, where |g| is smaller
_KEYS = {"drift": "f", "diffusion": "g", "prior_drift": "h"}


class WithDivergence:
    """A torchsde equation with a further coordinate l, dl = |g^{-1} (f - h)|^2 / 2 |dt|, without
    noise; direction is that of time, 1 or -1.

    For general, additive and scalar noise g^{-1} is the pseudoinverse.
    """

    def __init__(
        self,
        methods: Mapping[str, Callable[..., Tensor]],
        noise_type: str,
        sde_type: str,
        direction: float,
    ) -> None:
        self.methods = methods
        self.noise_type = noise_type
        self.sde_type = sde_type
        self.direction = direction

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._enlarged(self.methods["g"](t, y[:, :-1]))

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y[:, :-1]
        f, g, h = (self.methods[name](t, y) for name in ("f", "g", "h"))
        if self.noise_type == "diagonal":
            small = torch.where(g < 0, -_EPSILON, _EPSILON)
            u = (f - h) / torch.where(g.abs() > _EPSILON, g, small)
        else:
            u = torch.einsum("bmd,bd->bm", torch.linalg.pinv(g), f - h)
        rate = 0.5 * self.direction * u.square().sum(dim=1, keepdim=True)
        return torch.cat([f, rate], dim=1), self._enlarged(g)

    @staticmethod
    def _enlarged(g: Tensor) -> Tensor:
        return torch.cat([g, g.new_zeros(len(g), 1, *g.shape[2:])], dim=1)


def with_divergence(
    sde: object, names: Mapping[str, str] | None, direction: float
) -> WithDivergence:
    """The equation with its divergence, for increasing times, direction 1, or decreasing ones, -1.

    Raises:
        ValueError: when the object lacks one of the three functions.
    """
    renamed = names or {}
    methods: dict[str, Any] = {
        role: getattr(sde, renamed.get(key, role), None) for key, role in _KEYS.items()
    }
    missing = [role for role, method in methods.items() if not callable(method)]
    if missing:
        raise ValueError(
            f"logqp=True needs the methods f, g and h, the drift of the prior; "
            f"{type(sde).__name__} lacks {', '.join(missing)}. For equations of sdekit take "
            "sdekit.path_kl"
        )
    noise_type: Any = getattr(sde, "noise_type", None)
    sde_type: Any = getattr(sde, "sde_type", None)
    return WithDivergence(methods, noise_type, sde_type, direction)
