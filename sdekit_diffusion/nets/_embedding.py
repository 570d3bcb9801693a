"""The embedding of diffusion time, shared by the networks."""

import torch
from torch import Tensor, nn

# Powers of two are exact in every floating dtype, bfloat16 too. The periods run from 50, longer
# than any range of log signal-to-noise ratios, down to 0.2: short enough for a time in [0, 1], and
# long enough that an ODE does not become stiff.
_FREQUENCIES = tuple(2.0**k for k in range(-3, 6))


class TimeEmbedding(nn.Module):
    """Embeds a diffusion time in [0, 1] or a log signal-to-noise ratio in about [-6, 8].

    MLP(t, sin(w t), cos(w t)) with geometric frequencies w = 2^-3, ..., 2^5.

    Args:
        width: number of features returned.

    Reference: Tancik et al., Fourier Features Let Networks Learn High Frequency Functions, 2020.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(_FREQUENCIES), persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(
            nn.Linear(2 * len(_FREQUENCIES) + 1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, t: Tensor) -> Tensor:
        """Returns features (B, width), in the dtype of the weights, of times t (B,) of any
        dtype.
        """
        # Phases need the full precision of t: the weights may be bfloat16, which has 8 bits.
        t = t.to(torch.promote_types(t.dtype, torch.float32))[:, None]
        phase = t * self.frequencies.to(t.dtype)
        features = torch.cat([t, phase.sin(), phase.cos()], dim=1)
        return self.layers(features.to(self.frequencies.dtype))


def require_both(x: Tensor, t: Tensor | None) -> Tensor:
    """t, if x and t are tensors.

    Raises:
        TypeError: when one is not a tensor, or t is missing.
    """
    if isinstance(x, Tensor) and isinstance(t, Tensor):
        return t
    time_type = "nothing" if t is None else type(t).__name__
    raise TypeError(
        "a network is called as net(x, t) with tensors (B, *shape) and (B,), not with "
        f"{type(x).__name__} and {time_type}; use torch.as_tensor(x), and torch.full((len(x),), t) "
        "for one time"
    )


def check_time(x: Tensor, t: Tensor) -> None:
    """Raises ValueError unless t has shape (B,), one time for each of the B samples of x."""
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t has shape {tuple(t.shape)} but x has shape {tuple(x.shape)}: the network needs one "
            f"time per sample, shape {tuple(x.shape[:1])}; expand a single time with "
            "t.expand(len(x))"
        )
