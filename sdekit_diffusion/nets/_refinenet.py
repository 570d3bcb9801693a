"""RefineNets for scores of images: NCSNv2, which is told nothing of the noise, and NCSN, which is
told its level.
"""

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._embedding import check_time, require_both


class _InstanceNormPlus(nn.Module):
    """gain ((x - m_c) / s_c + pull (m_c - m) / s) + shift: m_c, s_c of each channel, m, s of the
    m_c over the channels.

    The last term keeps what normalisation takes away, how the channels' means differ. s_c^2 is the
    mean square over the pixels; s^2 is the unbiased variance, divided by the channels less one, as
    in the authors' code. Gain, pull and shift have a row for each level; those of a sample are the
    sum of the rows with its weights.

    Reference: Song and Ermon 2019, arXiv 1907.05600, appendix A.1; github.com/ermongroup/ncsnv2,
    models/normalization.py.
    """

    def __init__(self, features: int, levels: int) -> None:
        super().__init__()
        scales = 1 + 0.02 * torch.randn(levels, 2 * features)
        self.rows = nn.Parameter(torch.cat([scales, torch.zeros(levels, features)], dim=1))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        gain, pull, shift = (weights @ self.rows)[:, :, None, None].chunk(3, dim=1)
        means = x.mean(dim=(2, 3), keepdim=True)
        channels = x.shape[1]
        unbiased = channels / max(channels - 1, 1)
        return (
            gain * (_standardised(x, (2, 3)) + pull * _standardised(means, (1,), unbiased)) + shift
        )


def _standardised(x: Tensor, dim: tuple[int, ...], factor: float = 1.0) -> Tensor:
    """(x - mean) / (v + 1e-5)^{1/2}, v the mean square of x - mean times a factor."""
    centred = x - x.mean(dim=dim, keepdim=True)
    return centred * torch.rsqrt(factor * centred.square().mean(dim=dim, keepdim=True) + 1e-5)


class _Layer(nn.Module):
    """A norm, unless levels is 0; what is given to come between; a convolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        levels: int,
        between: nn.Module,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm = _InstanceNormPlus(inputs, levels) if levels else None
        self.between = between
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.conv(self.between(x if self.norm is None else self.norm(x, weights)))


class _Residual(nn.Module):
    """shortcut(x) + two layers. The first block of a stage has a convolution as its shortcut, and
    may halve the image.
    """

    def __init__(
        self, inputs: int, outputs: int, levels: int, dilation: int, first: bool, halve: bool
    ) -> None:
        super().__init__()
        middle = inputs if first else outputs
        self.layer1 = _Layer(inputs, middle, levels, nn.ELU(), dilation)
        self.layer2 = _Layer(middle, outputs, levels, nn.ELU(), dilation)
        self.shortcut = nn.Identity()
        if first:
            size = 3 if dilation > 1 else 1
            self.shortcut = nn.Conv2d(
                inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation
            )
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if halve else nn.Identity()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.pool(self.shortcut(x) + self.layer2(self.layer1(x, weights), weights))


class _Units(nn.Module):
    """Residual convolution units: x + two layers, `count` times."""

    def __init__(self, features: int, count: int, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [_Layer(features, features, levels, nn.ELU(), bias=False) for _ in range(2 * count)]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + second(first(x, weights), weights)
        return x


class _Cascade(nn.Module):
    """A RefineNet block: units on each input, the sum of both at the size of the first, chained
    pooling, units.

    Reference: Lin et al. 2017, arXiv 1611.06612, section 3.2.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, last: int, levels: int) -> None:
        super().__init__()
        pool = nn.AvgPool2d(5, 1, 2) if levels else nn.MaxPool2d(5, 1, 2)
        fused = inputs if len(inputs) > 1 else ()
        self.units = nn.ModuleList([_Units(size, 2, levels) for size in inputs])
        self.fusion = nn.ModuleList(
            [_Layer(size, outputs, levels, nn.Identity()) for size in fused]
        )
        self.pooling = nn.ModuleList(
            [_Layer(outputs, outputs, levels, pool, bias=False) for _ in range(2)]
        )
        self.last = _Units(outputs, last, levels)

    def forward(self, inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        hs = [units(x, weights) for units, x in zip(self.units, inputs, strict=True)]
        if self.fusion:
            h, low = (layer(h, weights) for layer, h in zip(self.fusion, hs, strict=True))
            hs = [
                h
                + functional.interpolate(low, size=h.shape[2:], mode="bilinear", align_corners=True)
            ]
        h = path = functional.elu(hs[0])
        for layer in self.pooling:
            path = layer(path, weights)
            h = h + path
        return self.last(h, weights)


class AbstractRefineNet(nn.Module, ABC):
    """Two residual blocks a stage on the way down, a cascade for each on the way up.

    Arguments:
        channels, width, multipliers, dilations, centred: as in `NCSNv2`.
        levels: rows of the norms on the way down and at the end.
        cascades: rows of the norms in the cascades, which pool by means; 0 for none, and for
            maxima.
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
        sizes = (channels, width, levels, *multipliers, *dilations)
        if not multipliers or len(multipliers) != len(dilations) or min(sizes) < 1:
            raise ValueError(
                f"{type(self).__name__} needs positive sizes and one dilation for each of "
                "multipliers; "
                f"given {channels=}, {width=}, {levels=}, multipliers={tuple(multipliers)}, "
                f"dilations={tuple(dilations)}"
            )
        given = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "dilations": list(dilations),
        }
        self.config: dict[str, int | list[int]] = given
        self.channels = channels
        self.levels = levels
        self.centred = centred
        sizes = [width * m for m in multipliers]
        above = [sizes[0], *sizes[:-1]]
        self.first = nn.Conv2d(channels, sizes[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, (larger, size, dilation) in enumerate(zip(above, sizes, dilations, strict=True)):
            self.down.append(
                _Residual(
                    larger, size, levels, dilation, first=i > 0, halve=i > 0 and dilation == 1
                )
            )
            self.down.append(_Residual(size, size, levels, dilation, first=False, halve=False))
        self.up.append(_Cascade(sizes[-1:], sizes[-1], 3 if len(sizes) == 1 else 1, cascades))
        lower = sizes[-1]
        for i in reversed(range(len(sizes) - 1)):
            self.up.append(_Cascade((sizes[i], lower), above[i], 1 if i else 3, cascades))
            lower = above[i]
        # The network starts at zero, the mean of a standardised target.
        self.last = _Layer(lower, channels, levels, nn.ELU())
        for parameter in self.last.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of x.

        Arguments:
            x: images (B, channels, H, W) of any size, in the dtype of the weights.
            t: times (B,), of any real dtype.

        Raises:
            TypeError: x or t is no tensor.
            ValueError: x has another rank or number of channels, or t is not one time per sample.
        """
        t = require_both(x, t)
        if x.dim() != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 1:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this {type(self).__name__} was built for (B, "
                f"{self.channels}, H, W); "
                f"reshape x or build {type(self).__name__}(channels=...) for your images"
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
        """The weight of each level, (B, levels): linear interpolation between the two that t in [0,
        1] is between.
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32)).clamp(0, 1)[:, None]
        return functional.relu(
            1 - (t * (self.levels - 1) - torch.arange(self.levels, device=t.device)).abs()
        )


class NCSNv2(AbstractRefineNet):
    """The RefineNet of Song and Ermon (2020): instance norm ++, not conditioned on the noise level.

    Their third technique is s(x, sigma) = net(x) / sigma. Here the sign differs: a `ScoreModel`
    that predicts "noise", under a diffusion with alpha = 1 such as `sdekit_diffusion.NCSN`, has the
    score -net(x) / sigma.

    From the second on a stage halves the image where its dilation is 1 and keeps it otherwise.
    Published, all of width 128, are multipliers (1, 2, 2, 2) with dilations (1, 1, 2, 4) for 32 and
    64 pixels, (1, 2, 2, 4, 4) with (1, 1, 1, 2, 4) for 96 and 128, (1, 2, 2, 2, 4, 4) with (1, 1,
    1, 1, 2, 4) for 256. For 8 pixels (1, 2, 2) with (1, 2, 4) is sufficient.

    Arguments:
        channels: channels of the images.
        width: features at full resolution are `width * multipliers[0]`.
        multipliers: features of each stage, in units of `width`.
        dilations: of the convolutions of each stage.
        centred: whether the network uses 2 x - 1, as the published ones do, whose images are in [0,
            1].

    Raises:
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
    """The RefineNet of Song and Ermon (2019), whose norms have gains and shifts per noise level.

    Level i of L, counted from the least noise, is at t = i / (L - 1), as under
    `sdekit_diffusion.NCSN(sigmas)`. Between levels gains and shifts are interpolated, so that every
    sampler applies; times outside [0, 1] count as its ends. The published network predicts "score".

    Arguments:
        channels, width, multipliers, dilations: as in `NCSNv2`.
        levels: the number of noise levels.

    Raises:
        ValueError: as in `NCSNv2`.

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
