"""Blocks of the U-Net: convolutions in one to three dimensions, norms, attention, levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Convolutions:
    """Makes the convolutions of a network, which keep the size of their input.

    Arguments:
        dimensions: of space: 1, 2 or 3.
        circular: whether space is periodic; padded with zeros otherwise.
    """

    dimensions: int = 2
    circular: bool = False

    def __call__(self, inputs: int, outputs: int, size: int = 3) -> nn.Module:
        return _CONVOLUTIONS[self.dimensions](
            inputs,
            outputs,
            size,
            padding=size // 2,
            padding_mode="circular" if self.circular and size > 1 else "zeros",
        )

    def zero(self, inputs: int, outputs: int, size: int = 3) -> nn.Module:
        """A convolution with weights and bias 0."""
        conv = self(inputs, outputs, size)
        for parameter in conv.parameters():
            nn.init.zeros_(parameter)
        return conv


def norm(channels: int) -> nn.GroupNorm:
    """A group norm with at least four channels in a group where there are as many: with groups of
    one channel, images of one pixel at the lowest level would become 0.
    """
    return nn.GroupNorm(math.gcd(channels, min(8, max(1, channels // 4))), channels)


class Attention(nn.Module):
    """x + W softmax(q k^T / sqrt(C)) v over the pixels, in one head.

    Not by scaled_dot_product_attention, which has no second derivative: differentiable likelihoods
    need one.
    """

    def __init__(self, convolutions: Convolutions, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = convolutions(channels, 3 * channels, 1)
        self.out = convolutions.zero(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.mT @ k / math.sqrt(x.shape[1]), dim=-1)
        return x + self.out((v @ weights.mT).reshape(x.shape))


class Block(nn.Module):
    """Residual block: norm, SiLU, convolution; norm, scale and shift computed from the embedding of
    time and conditions, SiLU, dropout, and a convolution that starts at 0.
    """

    def __init__(
        self,
        convolutions: Convolutions,
        inputs: int,
        outputs: int,
        embedding: int,
        dropout: float,
        attend: bool,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = convolutions(inputs, outputs)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolutions.zero(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else convolutions(inputs, outputs, 1)
        self.attention = Attention(convolutions, outputs) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        modulation = self.modulation(embedding)
        modulation = modulation.reshape(*modulation.shape, *[1 for _ in x.shape[2:]])
        scale, shift = modulation.chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.dropout(functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.attention(self.skip(x) + self.conv2(h))


class Level(nn.Module):
    """The residual blocks of one resolution; the first changes the number of channels."""

    def __init__(
        self,
        convolutions: Convolutions,
        inputs: int,
        outputs: int,
        blocks: int,
        embedding: int,
        dropout: float,
        attend: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Block(convolutions, outputs if i else inputs, outputs, embedding, dropout, attend)
                for i in range(blocks)
            ]
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x
