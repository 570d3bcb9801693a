"""Blocks of RefineNets: norms with gains and shifts by level, residual blocks, cascades."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class InstanceNormPlus(nn.Module):
    """gain ((x - m_c) / s_c + pull (m_c - m) / s) + shift, where m_c and s_c are mean and standard
    deviation of each channel, and m and s those of the m_c over the channels.

    The term with pull restores the differences between the channels' means, which normalisation
    removes. s_c^2 is the mean square over the pixels; s^2 is the unbiased variance, as in the
    authors' code. Gain, pull and shift have a row for each noise level; those of a sample are sums
    of the rows with the sample's weights.

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


class Layer(nn.Module):
    """A norm, unless levels is 0; the module `between`; a convolution."""

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
        self.norm = InstanceNormPlus(inputs, levels) if levels else None
        self.between = between
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.conv(self.between(x if self.norm is None else self.norm(x, weights)))


class Residual(nn.Module):
    """shortcut(x) + two layers of x. The first block of a stage has a convolution as its shortcut,
    and may halve the resolution.
    """

    def __init__(
        self, inputs: int, outputs: int, levels: int, dilation: int, first: bool, halve: bool
    ) -> None:
        super().__init__()
        middle = inputs if first else outputs
        self.layer1 = Layer(inputs, middle, levels, nn.ELU(), dilation)
        self.layer2 = Layer(middle, outputs, levels, nn.ELU(), dilation)
        self.shortcut = nn.Identity()
        if first:
            size = 3 if dilation > 1 else 1
            self.shortcut = nn.Conv2d(
                inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation
            )
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if halve else nn.Identity()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.pool(self.shortcut(x) + self.layer2(self.layer1(x, weights), weights))


class ResidualUnits(nn.Module):
    """Residual convolution units: x + two layers, `count` times."""

    def __init__(self, features: int, count: int, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Layer(features, features, levels, nn.ELU(), bias=False) for _ in range(2 * count)]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + second(first(x, weights), weights)
        return x


class Cascade(nn.Module):
    """A RefineNet block: units on each input, the sum of both at the size of the first, chained
    pooling, units.

    Reference: Lin et al. 2017, arXiv 1611.06612, section 3.2.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, last: int, levels: int) -> None:
        super().__init__()
        pool = nn.AvgPool2d(5, 1, 2) if levels else nn.MaxPool2d(5, 1, 2)
        fused = inputs if len(inputs) > 1 else ()
        self.units = nn.ModuleList([ResidualUnits(size, 2, levels) for size in inputs])
        self.fusion = nn.ModuleList([Layer(size, outputs, levels, nn.Identity()) for size in fused])
        self.pooling = nn.ModuleList(
            [Layer(outputs, outputs, levels, pool, bias=False) for _ in range(2)]
        )
        self.last = ResidualUnits(outputs, last, levels)

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
