"""A small U-Net for images, series and volumes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._conditions import Conditions, Values, require_all_whole, require_whole
from sdekit_diffusion.nets._embedding import TimeEmbedding, check_time, require_both
from sdekit_diffusion.nets._skip import Skip
from sdekit_diffusion.nets._unet_blocks import Convolutions, Level, norm

_SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}


class UNet(nn.Module):
    """U-Net of residual blocks on images, series or volumes, modulated by time and by conditions.

    Level i has 1 / 2^i of the resolution. The upward path of each level, except the lowest, also
    receives the features of the downward path of that level.

    Args:
        channels: channels of the images.
        width: features at full resolution are `width * multipliers[0]`.
        multipliers: features of each level, in units of `width`.
        blocks: residual blocks of each level, in the downward and in the upward path.
        attention: for each level, whether its blocks end in self-attention over the pixels.
        dropout: probability of dropping a feature inside a block while training.
        classes, context: as in `MLP`.
        image: channels of an image that the network receives for each sample, such as an upsampled
            image of low resolution, of the same size as x and scaled to numbers of order 1; 0 for
            none.
        dimensions: of space: 1 for series (B, channels, L), 2 for images, 3 for volumes.
        circular: whether space is periodic, so that convolutions wrap around and a shift of x by
            multiples of 2^(levels - 1) shifts the output.
        skip: as in `MLP`.

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for a size that is not positive, `attention` and `multipliers` of different
            lengths, other dimensions, a negative number of classes, context or image, or a dropout
            that is not in [0, 1].

    Example:
        >>> net = sd.nets.UNet(channels=1, width=8)
        >>> net(torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5)).shape
        torch.Size([2, 1, 8, 8])
        >>> net = sd.nets.UNet(channels=2, width=8, image=3, dimensions=1, circular=True)
        >>> net(torch.zeros(2, 2, 16), torch.ones(2), image=torch.zeros(2, 3, 16)).shape
        torch.Size([2, 2, 16])
        >>> net.null  # an image of NaN is unknown
        {'image': nan}

    Reference: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, appendix B;
    classes as in Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[bool] = (False, True),
        dropout: float = 0.0,
        classes: int = 0,
        context: int = 0,
        image: int = 0,
        dimensions: int = 2,
        circular: bool = False,
        skip: bool = False,
    ) -> None:
        super().__init__()
        _require_sizes(channels, width, multipliers, blocks, attention, dimensions)
        self.config: dict[str, int | float | list[int] | list[bool]] = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "dropout": dropout,
        }
        self.channels = channels
        self.dimensions = dimensions
        self.divisor = 2 ** (len(multipliers) - 1)
        sizes = [width * m for m in multipliers]
        convolutions = Convolutions(dimensions, circular)
        self.embedding = TimeEmbedding(2 * width)
        self.first = convolutions(channels + (image + 1 if image > 0 else 0), sizes[0])
        self.down, self.up = _paths(convolutions, sizes, blocks, dropout, attention, 2 * width)
        self.norm = norm(sizes[0])
        # The network starts at zero, the mean of a standardised target.
        self.last = convolutions.zero(sizes[0], channels)
        self.conditions = Conditions("UNet", 2 * width, classes, context, image)
        self.skip = Skip(2 * width, skip)
        self.config |= self.conditions.config | self.skip.config
        # Configs of images in two dimensions stay the same as in older checkpoints.
        self.config |= {"dimensions": dimensions} if dimensions != 2 else {}
        self.config |= {"circular": True} if circular else {}

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
            x: images (B, channels, H, W), series (B, channels, L) or volumes (B, channels, D, H,
                W), in the dtype of the weights; sizes divisible by 2^(levels - 1).
            t: times (B,), or log signal-to-noise ratios, of any real dtype.
            label, context: as in `MLP`.
            image: floats (B, image, H, W), or with the dimensions of x; an image with NaN where
                unknown; None if all are unknown.

        Raises:
            TypeError: when x or t is not a tensor, label not one of integers, or context or image
                not one of floating-point numbers.
            ValueError: when x has another rank or number of channels, or a size that is not a
                multiple of 2^(levels - 1), t is not one time per sample, a condition has another
                shape or is one that the network was built without, or, on the CPU, a label is not a
                class.
        """
        t = require_both(x, t)
        self._check(x)
        check_time(x, t)
        self.conditions.require(x, label, context, image)
        embedding = self.conditions(self.embedding(t), label, context)
        h = self.first(self.conditions.append_image(x, image))
        if self.training and self.dimensions == 2:
            # The layers below keep this memory layout. With it a training step of the default
            # network on 128 images of 8 x 8 took 44 ms on two cores instead of 57 ms; with width 24
            # it was 6 % slower, with width 40 9 % faster. Evaluation is not faster, and group norm
            # in this layout does not support vmap and forward-mode derivatives.
            h = h.contiguous(memory_format=torch.channels_last)
        h = self._levels(h, embedding)
        return self.skip(x, self.last(functional.silu(self.norm(h))), embedding)

    def _levels(self, h: Tensor, embedding: Tensor) -> Tensor:
        """The downward and the upward path."""
        skips = []
        for i, level in enumerate(self.down):
            h = level(_halved(h) if i else h, embedding)
            skips.append(h)
        h = self.up[-1](h, embedding)
        for level, skip in zip(reversed(self.up[:-1]), reversed(skips[:-1]), strict=True):
            h = level(
                torch.cat([functional.interpolate(h, scale_factor=2), skip], dim=1), embedding
            )
        return h

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dimensions + 2 or x.shape[1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this UNet was built for (B, {self.channels}, "
                f"{_SIZES[self.dimensions]}); reshape x or build UNet(channels=..., "
                "dimensions=...) for your data"
            )
        if min(x.shape[2:]) < 1 or any(size % self.divisor for size in x.shape[2:]):
            raise ValueError(
                f"x has images of {' x '.join(map(str, x.shape[2:]))} but this UNet halves them "
                f"{len(self.down) - 1} times, so all sizes must be positive multiples of "
                f"{self.divisor}; pad the images or use fewer multipliers"
            )


def _halved(h: Tensor) -> Tensor:
    """The means of pairs of neighbours in every dimension of space: half the resolution."""
    if h.dim() == 4:
        return functional.avg_pool2d(h, 2)
    for dim in range(2, h.dim()):  # as avg_pool3d, which has no bfloat16 on the CPU
        h = h.unflatten(dim, (-1, 2)).mean(dim=dim + 1)
    return h


def _require_sizes(
    channels: int,
    width: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[bool],
    dimensions: int,
) -> None:
    require_whole("UNet", channels=channels, width=width, blocks=blocks, dimensions=dimensions)
    require_all_whole("UNet", multipliers=multipliers)
    if (
        not multipliers
        or len(attention) != len(multipliers)
        or min(channels, width, blocks, *multipliers) < 1
    ):
        raise ValueError(
            "UNet needs positive sizes and one entry of attention for each of multipliers; "
            f"given {channels=}, {width=}, {blocks=}, multipliers={tuple(multipliers)}, "
            f"attention={tuple(attention)}"
        )
    if dimensions not in _SIZES:
        raise ValueError(
            f"UNet has dimensions=1 for series, 2 for images or 3 for volumes; given {dimensions=}"
        )


def _paths(
    convolutions: Convolutions,
    sizes: Sequence[int],
    blocks: int,
    dropout: float,
    attention: Sequence[bool],
    embedding: int,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The levels of the downward path and those of the upward path, the finest first."""
    above = [sizes[0], *sizes[:-1]]
    below = [*sizes[1:], 0]
    down = nn.ModuleList()
    up = nn.ModuleList()
    for size, larger, smaller, attend in zip(sizes, above, below, attention, strict=True):
        features = blocks, embedding, dropout, attend
        down.append(Level(convolutions, larger, size, *features))
        up.append(Level(convolutions, smaller + size, size, *features))
    return down, up
