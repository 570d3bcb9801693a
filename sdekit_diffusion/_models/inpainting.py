"""Known coordinates as a model made from a model: the replacement method, for every sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.elementary import Time
from sdekit_diffusion._models.derived import AbstractDerivedModel, per_sample
from sdekit_diffusion._models.known import known_values


@dataclass(frozen=True, eq=False)
class Inpainted(AbstractDerivedModel):
    """A model whose samples have known coordinates: D is y where the mask is True.

    With this denoiser the known coordinates of every method are x_t = alpha y + sigma eps_t,
    independently of the others. For the probability flow eps_t is the noise of x_T; for the reverse
    SDE it is that of the reverse process given x_0 = y. The denoiser of the other coordinates
    receives the known ones as part of x_t. This is the replacement method with one noisy path of y
    per sample. Song et al. draw new noise in every step, as `RePaint` with resamplings=1 does.

    It is an approximation: the other coordinates at each level follow their law given the known
    ones with the noise of this level, not given y. In the results the known coordinates are y with
    the noise `end` of `sample`, and y itself with denoise=True.

    Arguments:
        model: the model.
        y: the known values, of the shape of one sample, or one per sample, `(n, *shape)`; values
            where mask is False are ignored.
        mask: True where y is known, in a shape that broadcasts against y.

    Raises:
        TypeError: for a y that is not a floating tensor, or a mask that is not boolean.
        ValueError: for shapes that do not fit, or known values that are not finite; when sampled,
            for a model without a shape.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.05, 0.05])
        >>> y, mask = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
        >>> x = sd.sample(sd.Inpainted(law, y, mask), 100, sde="vp", seed=0)
        >>> bool((x[:, 0] - 1).abs().max() < 0.01)
        True

    References:
        Song et al. 2021, arXiv 2011.13456, appendix I.2; Trippe et al. 2023, arXiv 2206.04119, for
        its bias.
    """

    y: Tensor = per_sample(or_one=True)  # noqa: RUF009 - the description of a field
    mask: Tensor = per_sample(or_one=True)  # noqa: RUF009

    def __post_init__(self) -> None:
        y, mask = known_values(self.y, self.mask)
        super().__post_init__()
        device = self.model.place()[1]
        shape = self.model.shape
        if shape is not None:
            if tuple(y.shape) != tuple(shape) != tuple(y.shape[1:]):
                raise ValueError(
                    f"y has shape {tuple(y.shape)} and the model makes samples of shape "
                    f"{tuple(shape)}; give one sample, or (n, *shape)"
                )
            if y.ndim > len(shape) and len(y) == 1:
                y = y[0]
                mask = mask[0]
        object.__setattr__(self, "y", y.to(device))
        object.__setattr__(self, "mask", mask.to(device))

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        data = self.model.predict_data(l, u)
        # 0 D is NaN where the output of the model is not finite, which the mask would hide.
        return torch.where(self.mask.to(u.device), self.y.to(u) + 0 * data, data)
