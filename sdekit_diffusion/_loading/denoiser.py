"""Models of denoisers of EDM and k-diffusion."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sdekit.elementary import broadcast
from sdekit_diffusion._diffusions.edm import EDMSDE
from sdekit_diffusion._models.check import require_denoising
from sdekit_diffusion._models.score_model import ScoreModel

# The smallest sigma that a network receives: at 0 its logarithm is infinite, and the output is
# multiplied by 0.
_SMALLEST_SIGMA = 1e-9
Raw = Literal["edm", "k-diffusion"]


class _Denoiser(nn.Module):
    """D(x, sigma), with sigma bounded from below."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401
        return self.net(x, sigma.clamp(min=_SMALLEST_SIGMA), **conditions)


class _Preconditioned(nn.Module):
    """The velocity eps - sigma D of D = c_skip x + c_out F(c_in x, label), written such that no
    terms cancel for small or large sigma.
    """

    def __init__(self, net: Callable[..., Tensor], sigma_data: float, label_kind: Raw) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.label_kind = label_kind

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401
        label = sigma.clamp(min=_SMALLEST_SIGMA)
        label = label.log() / 4 if self.label_kind == "edm" else label
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, sigma.dtype))  # sigma is not rounded to half precision
        s = broadcast(sigma, x)
        v = self.sigma_data**2
        size = (s * s + v).sqrt()
        out = self.net((x / size).to(dtype), label, **conditions)
        return x * (s * (1 - v) / (s * s + v)) - out * (self.sigma_data * (1 + s * s) / size)


def from_edm(
    denoiser: Callable[..., Tensor],
    *,
    raw: Raw | None = None,
    sigma_data: float = 0.5,
    sigma_max: float = 80.0,
    shape: tuple[int, ...] | None = None,
    data_range: tuple[float, float] | None = (-1.0, 1.0),
    check: Tensor | None = None,
) -> ScoreModel:
    """A `ScoreModel` under `EDMSDE` from a denoiser D(x, sigma) of EDM or k-diffusion, or from the
    raw network F inside one.

    With s = sigma_data,

        D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),
        c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / (sigma^2 + s^2)^{1/2},
        c_in = 1 / (sigma^2 + s^2)^{1/2}.

    These networks are hardly trained on noise below sigma = 0.002: for data of standard deviation s
    sample with `sample(model, n, end=0.002 / s, denoise=True)`.

    Arguments:
        denoiser: called as `denoiser(x, sigma)`, with sigma of shape `(batch,)`: EDM's `EDMPrecond`
            and similar modules, k-diffusion's `Denoiser` and the wrappers of its external.py, or
            any function. Further arguments, such as class_labels, class_cond or mapping_cond, are
            passed by `ScoreModel.given`.
        raw: None for D itself; "edm" for an F with c_noise = log(sigma) / 4; "k-diffusion" for one
            with c_noise = sigma, the `inner_model` of a `Denoiser`.
        sigma_data: s; used with raw only.
        sigma_max: the largest noise that it was trained with.
        shape: the shape of one sample.
        data_range: the range of the images; None for other data, such as latents. For a network
            with conditions per sample set `model.data_std` then: it cannot be estimated, and is
            taken as 1.
        check: a batch of data, on which the conventions are checked as by `check_model`; for a
            network with labels use `check_model(model.given(class_cond=...), x)` instead.

    Raises:
        ValueError: for another raw, or when the model does not denoise the batch.

    Example:
        >>> def denoiser(x, sigma):  # of data from N(0, 0.25 I)
        ...     return x * (0.25 / (0.25 + sigma**2))[:, None]
        >>> model = sd.from_edm(denoiser, shape=(2,))
        >>> sd.sample(model, 4, end=0.002 / 0.5, denoise=True, seed=0).shape
        torch.Size([4, 2])

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 7 and table 1;
        github.com/crowsonkb/k-diffusion, layers.py.
    """
    if raw not in (None, *get_args(Raw)):
        raise ValueError(
            f"raw = {raw!r} is not None, for a denoiser D(x, sigma), nor "
            f"{' or '.join(map(repr, get_args(Raw)))}"
        )

    def model(raw: Raw | None, sigma_data: float) -> ScoreModel:
        net = _Denoiser(denoiser) if raw is None else _Preconditioned(denoiser, sigma_data, raw)
        predicts = "data" if raw is None else "velocity"
        return ScoreModel(
            net,
            EDMSDE(sigma_max),
            predicts,
            shape=shape,
            conditioning="sigma",
            data_range=data_range,
        )

    return require_denoising(model(raw, sigma_data), check, _alternatives(model, raw, sigma_data))


def _alternatives(
    model: Callable[[Raw | None, float], ScoreModel], raw: Raw | None, sigma_data: float
) -> Iterator[tuple[str, ScoreModel]]:
    """The models with other conventions for the same function, and the arguments for each."""
    for other in (None, *get_args(Raw)):
        for std in (sigma_data, 0.5, 1.0) if other else (sigma_data,):
            if (other, std) != (raw, sigma_data):
                yield f"raw={other!r}, sigma_data={std:g}", model(other, std)
