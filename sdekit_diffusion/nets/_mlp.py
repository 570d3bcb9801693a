"""A residual multilayer perceptron for low-dimensional data."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._embedding import TimeEmbedding, check_time, require_both


class _Block(nn.Module):
    """h + W2 silu((1 + scale) * W1 silu(h) + shift), with scale and shift read from the time
    embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return h + self.outer(functional.silu(self.inner(functional.silu(h)) * (1 + scale) + shift))


class MLP(nn.Module):
    """Residual multilayer perceptron on flattened data, modulated by time.

    Args:
        shape: event shape of the data, () for scalars; a list is accepted, as JSON returns one.
        width: number of hidden features.
        depth: number of residual blocks, of two layers each.

    Raises:
        ValueError: for an argument that is not positive.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=16, depth=2)
        >>> net(torch.zeros(4, 2), torch.full((4,), 0.5)).shape
        torch.Size([4, 2])
    """

    def __init__(self, shape: Sequence[int] = (2,), width: int = 128, depth: int = 3) -> None:
        super().__init__()
        if min(width, depth, *shape) < 1:
            raise ValueError(
                f"MLP needs positive sizes; given shape={tuple(shape)}, width={width}, "
                f"depth={depth}"
            )
        self.config: dict[str, int | list[int]] = {
            "shape": list(shape),
            "width": width,
            "depth": depth,
        }
        self.shape = tuple(shape)
        self.size = math.prod(shape)
        self.embedding = TimeEmbedding(width)
        self.first = nn.Linear(self.size, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(depth)])
        self.last = nn.Linear(width, self.size)
        # The network starts at zero, the mean of a standardised target.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Returns a tensor of the shape of x.

        Args:
            x: data (B, *shape), in the dtype of the weights.
            t: times (B,), of any real dtype.

        Raises:
            TypeError: x or t is not a tensor.
            ValueError: x has another event shape, or t is not one time per sample.
        """
        t = require_both(x, t)
        if x.dim() == 0 or x.shape[1:] != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this MLP was built for a batch of samples of "
                f"shape {self.shape}; reshape x or build MLP(shape=...) for your data"
            )
        check_time(x, t)
        embedding = self.embedding(t)
        h = self.first(x.reshape(len(x), self.size))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(functional.silu(h)).reshape(x.shape)
