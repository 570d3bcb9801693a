"""The conditions of a network: a class, a context vector and an image for each sample, each of
which may be unknown.
"""

import math
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

Values = Tensor | None  # a condition of a batch; None if it is unknown for all samples

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNKNOWN = {"label": -1, "context": math.nan, "image": math.nan}
_ARGUMENTS = {"label": "classes=10", "context": "context=4", "image": "image=1"}


def require_whole(network: str, **sizes: object) -> None:
    """Refuses sizes of a network that are not whole numbers.

    Raises:
        TypeError: names the argument.
    """
    for name, size in sizes.items():
        if not _is_whole(size):
            raise TypeError(f"{name} of {network} is a whole number, not {size!r:.60}")


def require_all_whole(network: str, **sizes: object) -> None:
    """Refuses arguments of a network that are not sequences of whole numbers.

    Raises:
        TypeError: names the argument.
    """
    for name, values in sizes.items():
        if not isinstance(values, Sequence) or not all(map(_is_whole, values)):
            raise TypeError(
                f"{name} of {network} is a tuple of whole numbers, such as (8, 8), not "
                f"{values!r:.60}"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor)


class Conditions(nn.Module):
    """The embeddings of labels and contexts, and the channels that an image adds to x.

    An unknown label has an embedding of its own, as one more class would; the embedding of an
    unknown context is a learned vector; an unknown image is replaced by zeros, and a further
    channel is 1 for known images and 0 for unknown ones. Samples do not depend on each other.

    Arguments:
        network: the name of the network, for messages.
        width: features of the time embedding, to which those of label and context are added.
        classes: the number of classes, 0 for no labels.
        context: the length of a context, 0 for none.
        image: channels of an image of the size of x, 0 for none.

    Raises:
        TypeError: for what is not a whole number.
        ValueError: for a negative number.

    Reference: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598: one
    network with and without its condition.
    """

    def __init__(
        self, network: str, width: int, classes: int = 0, context: int = 0, image: int = 0
    ) -> None:
        super().__init__()
        require_whole(network, classes=classes, context=context, image=image)
        if min(classes, context, image) < 0:
            raise ValueError(
                f"{network} takes numbers of classes, of a context and of an image's channels, 0 "
                f"for none; given {classes=}, {context=}, {image=}"
            )
        self.network = network
        self.sizes = {"label": classes, "context": context, "image": image}
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.contexts = None
        if context:
            self.contexts = nn.Sequential(
                nn.Linear(context, width), nn.SiLU(), nn.Linear(width, width)
            )
            self.unknown_context = nn.Parameter(torch.zeros(width))

    @property
    def config(self) -> dict[str, int]:
        """The arguments that are not 0: configs of networks without conditions stay the same."""
        sizes = {"classes" if name == "label" else name: size for name, size in self.sizes.items()}
        return {name: size for name, size in sizes.items() if size}

    @property
    def null(self) -> dict[str, float]:
        """The value that stands for an unknown condition, by condition."""
        return {name: value for name, value in _UNKNOWN.items() if self.sizes[name]}

    def require(
        self,
        x: Tensor,
        label: Values = None,
        context: Values = None,
        image: Values = None,
    ) -> None:
        """Refuses conditions that do not fit the network or x, (B, ...).

        Raises:
            TypeError: for a condition that is not a tensor of integers (label) or of floating-point
                numbers (context, image).
            ValueError: for a condition that the network was built without, a wrong shape, or, on
                the CPU, a label that is not a class.
        """
        rows = x.shape[0]
        given = {"label": label, "context": context, "image": image}
        shapes = {
            "label": (rows,),
            "context": (rows, self.sizes["context"]),
            "image": (rows, self.sizes["image"], *x.shape[2:]),
        }
        for name, value in given.items():
            if value is not None:
                self._require_built(name)
                _require_dtype(name, value)
                self._require_shape(name, value, shapes[name])
        if label is not None:
            self.require_classes(label)

    def forward(self, embedding: Tensor, label: Values = None, context: Values = None) -> Tensor:
        """The embedding of the time (B, width) plus those of the label and of the context."""
        if self.labels is not None:
            # Row 0 is that of unknown labels, -1; on accelerators, indices outside the table fail.
            unknown = self.labels.weight[0]
            embedding = embedding + (unknown if label is None else self.labels(label.long() + 1))
        if self.contexts is not None:
            embedding = embedding + self._embed_context(self.contexts, context)
        return embedding

    def _embed_context(self, layers: nn.Module, context: Values) -> Tensor:
        """The embeddings of contexts; that of an unknown one for all samples if there are none."""
        if context is None:
            return self.unknown_context
        known = ~context.isnan().any(dim=1, keepdim=True)
        # NaN is replaced before the layers: replaced after them, it would still give NaN gradients.
        numbers = torch.where(known, context, 0).to(self.unknown_context.dtype)
        return torch.where(known, layers(numbers), self.unknown_context)

    def append_image(self, x: Tensor, image: Values = None) -> Tensor:
        """x (B, C, *size) with the channels of the image and one that says whether it is known."""
        channels = self.sizes["image"]
        if not channels:
            return x
        if image is None:
            return torch.cat([x, x.new_zeros(x.shape[0], channels + 1, *x.shape[2:])], dim=1)
        known = ~image.isnan().flatten(1).any(dim=1).reshape(-1, *[1 for _ in x.shape[1:]])
        mask = known.to(x.dtype).expand(-1, 1, *x.shape[2:])
        return torch.cat([x, torch.where(known, image, 0).to(x.dtype), mask], dim=1)

    def _require_built(self, name: str) -> None:
        if not self.sizes[name]:
            raise ValueError(
                f"{name} was given, but this {self.network} was built without: leave it out, or "
                f"build {self.network}({_ARGUMENTS[name]}), for example"
            )

    def _require_shape(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but this {self.network} needs {shape}, "
                f"one {name} per sample of x; reshape it, or repeat one for all samples with "
                f"{name}.expand({', '.join(map(str, shape))})"
            )

    def require_classes(self, label: Tensor) -> None:
        """Refuses labels that are not classes. Only on the CPU: on other devices the check would
        synchronise.

        Raises:
            ValueError: says which classes there are.
        """
        if label.device.type != "cpu" or torch.compiler.is_compiling() or not label.numel():
            return
        if is_functorch_wrapped_tensor(label):  # its values may be hidden
            return
        classes = self.sizes["label"]
        least, largest = (int(value) for value in label.aminmax())
        if least < -1 or largest >= classes:
            if least == -1:  # unknown, or dropped in training
                least = int(label[label >= 0].min())
            raise ValueError(
                f"label has values from {least} to {largest}, but the classes of this "
                f"{self.network} are 0 to {classes - 1}, and -1 where unknown; build "
                f"{self.network}(classes=...) with one more than the largest label"
            )


def _require_dtype(name: str, value: Tensor) -> None:
    """Refuses what is not a tensor of integers, for a label, or of floats, for the others."""
    numbers = "integers" if name == "label" else "floating-point numbers"
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor of {numbers}, not {type(value).__name__}; use "
            f"torch.as_tensor({name})"
        )
    fits = value.dtype in _INTEGERS if name == "label" else value.is_floating_point()
    if not fits:
        cast = "long" if name == "label" else "float"
        raise TypeError(f"{name} must hold {numbers}, not {value.dtype}; use {name}.{cast}()")
