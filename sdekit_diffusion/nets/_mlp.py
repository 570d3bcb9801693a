"""A residual multilayer perceptron for low-dimensional data."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.nets._conditions import Conditions, Values, require_all_whole, require_whole
from sdekit_diffusion.nets._embedding import TimeEmbedding, check_time, require_both
from sdekit_diffusion.nets._skip import Skip


class _Block(nn.Module):
    """h + W2 silu((1 + scale) * W1 silu(h) + shift), with scale and shift computed from the
    embedding of time and conditions.
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
    """Residual multilayer perceptron on flattened data, modulated by time and by conditions.

    Args:
        shape: the shape of one sample, () for scalars; a tuple or a list.
        width: number of hidden features.
        depth: number of residual blocks, of two layers each.
        classes: the number of classes of labels, 0 for a network without labels.
        context: the length of a vector that the network receives for each sample, such as the
            parameters of a simulation, scaled to numbers of order 1; 0 for none.
        skip: whether the output is (1 - g) x + sqrt(g) F, with F that of the layers and a gate g in
            (0, 1) that is learned as a function of time and conditions: for networks that predict
            the data, which at low noise return nearly x.

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for a size that is not positive, or a negative number of classes or context.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=16, depth=2)
        >>> net(torch.zeros(4, 2), torch.full((4,), 0.5)).shape
        torch.Size([4, 2])
        >>> net = sd.nets.MLP(shape=(2,), width=16, classes=10)
        >>> net(torch.zeros(4, 2), torch.ones(4), label=torch.tensor([3, 9, 0, -1])).shape
        torch.Size([4, 2])
        >>> net.null  # the label of samples of which the class is unknown
        {'label': -1}
    """

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        context: int = 0,
        skip: bool = False,
    ) -> None:
        super().__init__()
        require_all_whole("MLP", shape=shape)
        require_whole("MLP", width=width, depth=depth)
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
        self.conditions = Conditions("MLP", width, classes, context)
        self.skip = Skip(width, skip)
        self.config |= self.conditions.config | self.skip.config

    @property
    def null(self) -> dict[str, float]:
        """The value that stands for an unknown condition, for each that the network has."""
        return self.conditions.null

    def forward(
        self, x: Tensor, t: Tensor | None = None, *, label: Values = None, context: Values = None
    ) -> Tensor:
        """Returns a tensor of the shape of x.

        Args:
            x: data (B, *shape), in the dtype of the weights.
            t: times (B,), or log signal-to-noise ratios, of any real dtype.
            label: integers (B,) from 0 to classes - 1, or -1 where unknown; None if all are
                unknown.
            context: floats (B, context), a row with NaN where unknown; None if all are unknown.

        Raises:
            TypeError: when x or t is not a tensor, label not one of integers, or context not one of
                floating-point numbers.
            ValueError: when x has another event shape, t is not one time per sample, a condition
                has another shape or is one that the network was built without, or, on the CPU, a
                label is not a class.
        """
        t = require_both(x, t)
        if x.dim() == 0 or x.shape[1:] != self.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but this MLP was built for a batch of samples of "
                f"shape {self.shape}; reshape x or build MLP(shape=...) for your data"
            )
        check_time(x, t)
        self.conditions.require(x, label, context)
        embedding = self.conditions(self.embedding(t), label, context)
        h = self.first(x.reshape(x.shape[0], self.size))
        for block in self.blocks:
            h = block(h, embedding)
        return self.skip(x, self.last(functional.silu(h)).reshape(x.shape), embedding)
