"""RefineNets for scores of images: NCSNv2, which is not conditioned on the noise level, and NCSN,
which is.
"""

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._conditions import require_all_whole, require_whole
from sdekit_diffusion.nets._embedding import check_time, require_both
from sdekit_diffusion.nets._refinenet_blocks import Cascade, Layer, Residual


class AbstractRefineNet(nn.Module, ABC):
    """A RefineNet: two residual blocks per stage on the downward path, a cascade for each stage on
    the upward path.

    Arguments:
        channels, width, multipliers, dilations, centred: as in `NCSNv2`.
        levels: the number of noise levels for which the norms on the downward path and at the end
            have gains and shifts.
        cascades: the same for the norms in the cascades, which then use average pooling; 0 for no
            norms and max pooling.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        dilations: Sequence[int],
        levels: int,
        cascades: int,
        centred: bool = False,
    ) -> None:
        super().__init__()
        network = type(self).__name__
        require_whole(network, channels=channels, width=width, levels=levels)
        require_all_whole(network, multipliers=multipliers, dilations=dilations)
        smallest = min(channels, width, levels, *multipliers, *dilations)
        if not multipliers or len(multipliers) != len(dilations) or smallest < 1:
            raise ValueError(
                f"{network} needs positive sizes and one dilation for each of "
                f"multipliers; given {channels=}, {width=}, {levels=}, "
                f"multipliers={tuple(multipliers)}, dilations={tuple(dilations)}"
            )
        self.config: dict[str, int | list[int]] = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "dilations": list(dilations),
        }
        self.channels = channels
        self.levels = levels
        self.centred = centred
        sizes = [width * m for m in multipliers]
        self.first = nn.Conv2d(channels, sizes[0], 3, padding=1)
        self.down = nn.ModuleList(_stages(sizes, dilations, levels))
        self.up = nn.ModuleList(_cascades(sizes, cascades))
        # The network starts at zero, the mean of a standardised target.
        self.last = Layer(sizes[0], channels, levels, nn.ELU())
        for parameter in self.last.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of x.

        Arguments:
            x: images (B, channels, H, W) of any size, in the dtype of the weights.
            t: times (B,), of any real dtype.

        Raises:
            TypeError: when x or t is not a tensor.
            ValueError: when x has another rank or number of channels, or t is not one time per
                sample.
        """
        t = require_both(x, t)
        if x.dim() != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 1:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this {type(self).__name__} was built for (B, "
                f"{self.channels}, H, W); reshape x or build {type(self).__name__}(channels=...) "
                "for your images"
            )
        check_time(x, t)
        weights = self._weights(t).to(x.dtype)
        h = self.first(2 * x - 1 if self.centred else x)
        skips = []
        for first, second in zip(self.down[::2], self.down[1::2], strict=True):
            h = second(first(h, weights), weights)
            skips.append(h)
        h = self.up[0](skips[-1:], weights)
        for cascade, skip in zip(self.up[1:], reversed(skips[:-1]), strict=True):
            h = cascade((skip, h), weights)
        return self.last(h, weights)

    def _weights(self, t: Tensor) -> Tensor:
        """The weight of each level, (B, levels): linear interpolation between the two
        levels on either side of t in [0, 1].
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(0, 1)[:, None]
        return functional.relu(
            1 - (t * (self.levels - 1) - torch.arange(self.levels, device=t.device)).abs()
        )


def _stages(sizes: Sequence[int], dilations: Sequence[int], levels: int) -> list[Residual]:
    """The downward path: two blocks per stage; the first receives the features of the previous
    stage.
    """
    blocks = []
    above = sizes[0]
    for i, (size, dilation) in enumerate(zip(sizes, dilations, strict=True)):
        halve = i > 0 and dilation == 1
        blocks.append(Residual(above, size, levels, dilation, first=i > 0, halve=halve))
        blocks.append(Residual(size, size, levels, dilation, first=False, halve=False))
        above = size
    return blocks


def _cascades(sizes: Sequence[int], levels: int) -> list[Cascade]:
    """The upward path: one cascade for each stage, from the last to the first; the final cascade
    ends in three units instead of one.
    """
    above = [sizes[0], *sizes[:-1]]
    cascades = [Cascade(sizes[-1:], sizes[-1], 3 if len(sizes) == 1 else 1, levels)]
    lower = sizes[-1]
    for i in reversed(range(len(sizes) - 1)):
        cascades.append(Cascade((sizes[i], lower), above[i], 1 if i else 3, levels))
        lower = above[i]
    return cascades


class NCSNv2(AbstractRefineNet):
    """The RefineNet of Song and Ermon (2020), with instance normalisation++, which is not
    conditioned on the noise level and ignores t.

    Their third technique is the score s(x, sigma) = net(x) / sigma. Here the sign differs: a
    `ScoreModel` that predicts "noise", under a diffusion with alpha = 1 such as
    `sdekit_diffusion.NCSN`, has the score -net(x) / sigma.

    Each stage from the second on halves the resolution if its dilation is 1, and keeps it
    otherwise. The published networks have width 128 and, by the size of the images in pixels,

    | size | multipliers | dilations |
    | --- | --- | --- |
    | 32, 64 | (1, 2, 2, 2) | (1, 1, 2, 4) |
    | 96, 128 | (1, 2, 2, 4, 4) | (1, 1, 1, 2, 4) |
    | 256 | (1, 2, 2, 2, 4, 4) | (1, 1, 1, 1, 2, 4) |

    For 8 pixels (1, 2, 2) with (1, 2, 4) is sufficient.

    Arguments:
        channels: channels of the images.
        width: features at full resolution are `width * multipliers[0]`.
        multipliers: features of each stage, in units of `width`.
        dilations: dilation of the convolutions of each stage.
        centred: whether 2 x - 1 is the input of the first layer, as in the published networks,
            whose images are in [0, 1].

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for a size that is not positive, or multipliers and dilations of different
            lengths.

    Example:
        >>> net = sd.nets.NCSNv2(channels=1, width=4, multipliers=(1, 2), dilations=(1, 2))
        >>> net(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5)).shape
        torch.Size([2, 1, 8, 8])

    Reference: Song and Ermon 2020, arXiv 2006.09011, appendix B.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        centred: bool = False,
    ) -> None:
        super().__init__(
            channels, width, multipliers, dilations, levels=1, cascades=0, centred=centred
        )
        if centred:  # older configs do not have it, and must stay the same
            self.config["centred"] = True


class NCSN(AbstractRefineNet):
    """The RefineNet of Song and Ermon (2019), whose norms have gains and shifts for each noise
    level.

    Level i = 0, ..., L - 1, counted from the smallest noise, is at t = i / (L - 1), as under
    `sdekit_diffusion.NCSN(sigmas)`. Between levels gains and shifts are interpolated linearly, so
    that every sampler can use the network; times outside [0, 1] count as the nearest end. The
    published network predicts "score".

    Arguments:
        channels, width, multipliers, dilations: as in `NCSNv2`.
        levels: the number L of noise levels.

    Raises:
        TypeError, ValueError: as `NCSNv2`, and for fewer than one level.

    Example:
        >>> net = sd.nets.NCSN(channels=1, width=4, multipliers=(1, 2), dilations=(1, 2))
        >>> net(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5)).shape
        torch.Size([2, 1, 8, 8])

    Reference: Song and Ermon 2019, arXiv 1907.05600, appendix A.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        levels: int = 10,
    ) -> None:
        super().__init__(channels, width, multipliers, dilations, levels=levels, cascades=levels)
        self.config["levels"] = levels
