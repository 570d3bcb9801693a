"""A transformer for images."""

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._conditions import Conditions, Values, require_all_whole, require_whole
from sdekit_diffusion.nets._embedding import TimeEmbedding, check_time, require_both
from sdekit_diffusion.nets._skip import Skip


class DiT(nn.Module):
    """Diffusion transformer on patches of images, modulated by time and by conditions (adaLN-Zero).

    Position embeddings are sines and cosines of the row and the column of a patch. It differs from
    the published network in the embedding of time, which is that of the other networks here, and
    in the initial weights, which are torch's defaults where they are not 0. The published sizes,
    each with patches of 2, 4 or 8 pixels:

    | size | width | depth | heads |
    | --- | --- | --- | --- |
    | S | 384 | 12 | 6 |
    | B | 768 | 12 | 12 |
    | L | 1024 | 24 | 16 |
    | XL | 1152 | 28 | 16 |

    Args:
        channels: channels of the images.
        size: height and width of the images.
        patch: height and width of a patch in pixels; each patch is a token.
        width: features of a token.
        depth: number of blocks, of attention and two layers each.
        heads: number of attention heads, a divisor of the width.
        classes, context: as in `MLP`.
        image: as in `UNet`.
        skip: as in `MLP`.

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for a size that is not positive, patches that do not divide the images, heads
            that do not divide the width, a width that is not a multiple of 4, or a negative number
            of classes, context or image.

    Example:
        >>> net = sd.nets.DiT(channels=1, size=(8, 8), width=16, depth=2, classes=10)
        >>> net(torch.zeros(2, 1, 8, 8), torch.ones(2), label=torch.tensor([3, -1])).shape
        torch.Size([2, 1, 8, 8])

    Reference: Peebles and Xie, Scalable Diffusion Models with Transformers, 2023, arXiv 2212.09748.
    """

    def __init__(
        self,
        channels: int = 1,
        size: Sequence[int] = (8, 8),
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int = 0,
        context: int = 0,
        image: int = 0,
        skip: bool = False,
    ) -> None:
        super().__init__()
        _require_sizes(channels, size, patch, width, depth, heads)
        self.config: dict[str, int | list[int]] = {
            "channels": channels,
            "size": list(size),
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
        }
        self.shape = (channels, *size)
        self.patch = patch
        self.embedding = TimeEmbedding(width)
        inputs = channels + (image + 1 if image > 0 else 0)
        self.first = nn.Conv2d(inputs, width, patch, stride=patch)
        positions = self._positions().to(torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(depth)])
        # The network starts at zero, the mean of a standardised target.
        self.modulation = _zero_linear(width, 2 * width)
        self.last = _zero_linear(width, channels * patch**2)
        self.conditions = Conditions("DiT", width, classes, context, image)
        self.skip = Skip(width, skip)
        self.config |= self.conditions.config | self.skip.config

    def _positions(self) -> Tensor:
        rows, columns = (side // self.patch for side in self.shape[1:])
        return _positions(rows, columns, self.first.out_channels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.positions
        super()._apply(fn, recurse)
        if self.positions is not before:  # to another dtype or device, not from rounded ones
            self.positions = self._positions().to(self.positions)
        return self

    @property
    def null(self) -> dict[str, float]:
        """The value that stands for an unknown condition, for each that the network has."""
        return self.conditions.null

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        label: Values = None,
        context: Values = None,
        image: Values = None,
    ) -> Tensor:
        """Returns a tensor of the shape of x.

        Args:
            x: images (B, channels, H, W), in the dtype of the weights.
            t: times (B,), or log signal-to-noise ratios, of any real dtype.
            label, context: as in `MLP`.
            image: as in `UNet`.

        Raises:
            TypeError: when x or t is not a tensor, label not one of integers, or context or image
                not one of floating-point numbers.
            ValueError: when x has another shape, t is not one time per sample, a condition has
                another shape or is one that the network was built without, or, on the CPU, a label
                is not a class.
        """
        t = require_both(x, t)
        if x.dim() == 0 or x.shape[1:] != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this DiT was built for a batch of images of "
                f"shape {self.shape}; reshape x or build DiT(channels=..., size=...) for your "
                "images"
            )
        check_time(x, t)
        self.conditions.require(x, label, context, image)
        embedding = functional.silu(self.conditions(self.embedding(t), label, context))
        patches = self.first(self.conditions.append_image(x, image))
        h = patches.flatten(2).mT + self.positions
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        pixels = self.last(_normalised(h) * (1 + scale) + shift).mT
        output = functional.pixel_shuffle(pixels.unflatten(2, patches.shape[2:]), self.patch)
        return self.skip(x, output, embedding)


class _Block(nn.Module):
    """h + gate attention(n(h)), then h + gate W2 gelu(W1 n(h)), where n is a norm with scale and
    shift; gates, scales and shifts are computed from the embedding and start at 0.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = _zero_linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(
            6, dim=2
        )
        h = h + gate1 * self._attention(_normalised(h) * (1 + scale1) + shift1)
        inner = self.inner(_normalised(h) * (1 + scale2) + shift2)
        return h + gate2 * self.outer(functional.gelu(inner, approximate="tanh"))

    def _attention(self, h: Tensor) -> Tensor:
        """W softmax(q k^T / sqrt(d)) v over the tokens, in heads of d features.

        Not by scaled_dot_product_attention, which has no second derivative: differentiable
        likelihoods need one.
        """
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(h).chunk(3, dim=2)
        )
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[3]), dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _normalised(h: Tensor) -> Tensor:
    """The tokens with mean 0 and variance 1 over their features."""
    return functional.layer_norm(h, h.shape[2:], eps=1e-6)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines (rows * columns, width) of the column of each patch, then of its row, times
    width / 4 frequencies from 1 down to nearly 1 / 10000, in float64.
    """
    table = torch.empty(rows, columns, width, dtype=torch.float64)  # first: its size may be refused
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    i = torch.arange(rows, dtype=torch.float64)[:, None, None] * frequencies
    j = torch.arange(columns, dtype=torch.float64)[None, :, None] * frequencies
    parts = torch.broadcast_tensors(j.sin(), j.cos(), i.sin(), i.cos())
    return torch.cat(parts, dim=2, out=table).flatten(0, 1)


def _require_sizes(
    channels: int, size: Sequence[int], patch: int, width: int, depth: int, heads: int
) -> None:
    require_whole("DiT", channels=channels, patch=patch, width=width, depth=depth, heads=heads)
    require_all_whole("DiT", size=size)
    given = f"given {channels=}, size={tuple(size)}, {patch=}, {width=}, {depth=}, {heads=}"
    if len(size) != 2 or min(channels, *size, patch, width, depth, heads) < 1:
        raise ValueError(f"DiT needs positive sizes, size=(height, width); {given}")
    if size[0] % patch or size[1] % patch or width % heads or width % 4:
        raise ValueError(
            "DiT needs patches that divide height and width, heads that divide the width of a "
            f"token, and a width that is a multiple of 4; {given}; choose another patch, heads or "
            "width"
        )
