"""Linear maps from samples to measurements: A in y = A x + noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdekit_diffusion._arguments.inputs import is_whole, require_tensor

_TOLERANCE = 1e-3  # of the check of linearity, relative to the size of the results
_ROUNDING = 16  # of A(0), in units in the last place of the largest result
_NO_DERIVATIVE = (
    "autograd does not see the operator, so its adjoint is not known: compute it by torch and do "
    "not detach x, or give a pair (function, adjoint)"
)
MAX_GRAM = 4096  # the largest number of measurements for which A A^T is computed


class AbstractOperator(ABC):
    """A linear map A that is applied to each sample of a batch; a subclass defines `__call__`.

    `adjoint` uses autograd unless the subclass defines it. A subclass with A A^T = c I should also
    define `gram_diagonal`.

    Example:
        >>> class Sum(sd.AbstractOperator):
        ...     def __call__(self, x):
        ...         return x.sum(dim=1, keepdim=True)
        >>> Sum().adjoint(torch.tensor([[2.0]]), (3,))
        tensor([[2., 2., 2.]])
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x: `(batch, *event)` to `(batch, *measured)`."""

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        """A^T v: `(batch, *measured)` to `(batch, *event)`."""
        zero = v.new_zeros(len(v), *event)
        with torch.inference_mode(False), torch.enable_grad():
            pull: Any = torch.func.vjp(self, zero)[1]
            return pull(v)[0]

    def gram_diagonal(self, event: tuple[int, ...]) -> float | None:
        """c if A A^T = c I, which is then not computed; None for other maps."""
        return None


@dataclass(frozen=True, eq=False)
class Matrix(AbstractOperator):
    """The product of a matrix with flattened samples.

    Arguments:
        matrix: `(m, d)`, floating, with one row per measurement.

    Raises:
        TypeError: for a matrix that is not a tensor.
        ValueError: for a matrix that is not floating and finite or has another shape; when applied
            to samples that do not have d coordinates.

    Example:
        >>> sd.Matrix(torch.tensor([[1.0, -1.0]]))(torch.tensor([[3.0, 1.0]]))
        tensor([[2.]])
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        require_tensor("matrix", self.matrix, "(m, d)")
        if self.matrix.ndim != 2 or not self.matrix.is_floating_point():
            raise ValueError(
                f"matrix must be floating, of shape (m, d), one row for each measurement; not "
                f"{self.matrix.dtype} of {tuple(self.matrix.shape)}"
            )
        if not bool(self.matrix.isfinite().all()):
            raise ValueError("matrix has numbers that are not finite")

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        if flat.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                f"the matrix has {self.matrix.shape[1]} columns and a sample of shape "
                f"{tuple(x.shape[1:])} has {flat.shape[1]} coordinates; give (m, {flat.shape[1]})"
            )
        return flat @ self.matrix.to(x).T

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        return (v @ self.matrix.to(v)).reshape(len(v), *event)


@dataclass(frozen=True, eq=False)
class LinearMap(AbstractOperator):
    """A function of a batch that is linear in each sample, and its adjoint.

    Arguments:
        function: `(batch, *event)` to `(batch, *measured)`; differentiable, unless there is a
            transpose.
        transpose: the adjoint, `(batch, *measured)` to `(batch, *event)`; None for autograd.

    Example:
        >>> halves = sd.LinearMap(lambda x: x[:, :2] + x[:, 2:])
        >>> halves.adjoint(torch.tensor([[1.0, 2.0]]), (4,))
        tensor([[1., 2., 1., 2.]])
    """

    function: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        if self.transpose is None:
            return super().adjoint(v, event)
        return self.transpose(v).reshape(len(v), *event)


@dataclass(frozen=True, eq=False)
class Mask(AbstractOperator):
    """The coordinates where a mask is True, as a vector: inpainting.

    Arguments:
        mask: boolean, of the shape of a sample, or a shape that broadcasts to it, such as
            `(1, 8, 8)`.

    Raises:
        TypeError: for a mask that is not a boolean tensor.
        ValueError: when applied to samples of another shape.

    Example:
        >>> sd.Mask(torch.tensor([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 3.]])
    """

    mask: Tensor

    def __post_init__(self) -> None:
        require_tensor("mask", self.mask, "(*shape)")
        if self.mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be boolean, True where x is known, not {self.mask.dtype}; use "
                "mask.bool()"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), math.prod(x.shape[1:]))[
            :, self._known(tuple(x.shape[1:]), x.device)
        ]

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        x = v.new_zeros(len(v), math.prod(event))
        x[:, self._known(event, v.device)] = v
        return x.reshape(len(v), *event)

    def gram_diagonal(self, event: tuple[int, ...]) -> float:
        return 1.0

    def _known(self, event: tuple[int, ...], device: torch.device) -> Tensor:
        try:
            return self.mask.to(device).expand(event).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)} and a sample has {event}; give the "
                "shape of a sample, or one that broadcasts to it"
            ) from None


@dataclass(frozen=True, eq=False)
class Downsampling(AbstractOperator):
    """The means of factor x factor blocks of pixels: an image whose width and height are divided by
    the factor.

    Arguments:
        factor: the side of a block in pixels, a divisor of both sides of the image.

    Raises:
        ValueError: for a factor that is not a whole number from 1 on; when applied to samples that
            are not images, or images with other sides.

    Example:
        >>> sd.Downsampling(2)(torch.ones(3, 1, 8, 8)).shape
        torch.Size([3, 1, 4, 4])
    """

    factor: int

    def __post_init__(self) -> None:
        if not is_whole(self.factor, 1):
            raise ValueError(
                "factor is the side of a block in pixels, a whole number from 1 on such as 2; not "
                f"{self.factor!r:.60}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        _require_image(x, self)
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"blocks of side {self.factor} do not fill images of {x.shape[-2]} x "
                f"{x.shape[-1]}; choose a factor of both"
            )
        return functional.avg_pool2d(x, self.factor)

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        x = v.repeat_interleave(self.factor, dim=-1).repeat_interleave(self.factor, dim=-2)
        return x / self.factor**2

    def gram_diagonal(self, event: tuple[int, ...]) -> float:
        return 1 / self.factor**2


@dataclass(frozen=True, eq=False)
class Blur(AbstractOperator):
    """The convolution of each channel with a Gaussian kernel; images are 0 outside their borders.

    The weights have the sum 1 and are 0 beyond 3 std.

    Arguments:
        std: the standard deviation of the kernel, in pixels.

    Raises:
        ValueError: for a std that is not positive and finite; when applied to samples that are not
            images.

    Example:
        >>> sd.Blur(1.0)(torch.ones(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """

    std: float

    def __post_init__(self) -> None:
        try:
            valid = 0 < float(self.std) < math.inf
        except (TypeError, ValueError, RuntimeError):  # not a number
            valid = False
        if not valid:
            raise ValueError(
                f"std is in pixels, a positive number such as 1.0; not {self.std!r:.60}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        _require_image(x, self)
        reach = math.ceil(3 * self.std)
        at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-0.5 * (at / self.std) ** 2)
        weights = weights / weights.sum()
        channels = x.shape[1]
        rows = weights.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
        x = functional.conv2d(x, rows, padding=(reach, 0), groups=channels)
        return functional.conv2d(x, rows.mT, padding=(0, reach), groups=channels)

    def adjoint(self, v: Tensor, event: tuple[int, ...]) -> Tensor:
        return self(v)  # the kernel is even


@dataclass(frozen=True, eq=False)
class FourierSampling(AbstractOperator):
    """Some coefficients of the orthonormal discrete Fourier transform of each channel: magnetic
    resonance imaging.

    The result is `(batch, 2, n)`: the real parts of the n coefficients of all channels, and their
    imaginary parts.

    Arguments:
        mask: boolean, `(height, width)`, True where a coefficient is measured; frequencies are in
            the order of `torch.fft.fft2`, with 0 first.

    Raises:
        TypeError: for a mask that is not a boolean tensor.
        ValueError: for a mask of another shape; when applied to samples that are not images, or
            images of another size.

    Example:
        >>> mask = torch.zeros(8, 8, dtype=torch.bool)
        >>> mask[0, 1] = True
        >>> sd.FourierSampling(mask)(torch.ones(3, 1, 8, 8)).shape
        torch.Size([3, 2, 1])
    """

    mask: Tensor

    def __post_init__(self) -> None:
        require_tensor("mask", self.mask, "(height, width)")
        Mask(self.mask)  # the same checks
        if self.mask.ndim != 2:
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)}; give (height, width), for the "
                "coefficients of all channels"
            )

    def __call__(self, x: Tensor) -> Tensor:
        _require_image(x, self)
        if x.shape[-2:] != self.mask.shape:
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)} and images have "
                f"{tuple(x.shape[-2:])}; give a mask of (height, width)"
            )
        measured = torch.fft.fft2(x, norm="ortho")[..., self.mask.to(x.device)]
        return torch.stack([measured.real, measured.imag], dim=1).flatten(2)


@dataclass(frozen=True, eq=False)
class Radon(AbstractOperator):
    """Sums along parallel lines at several angles, of images that are 0 outside their borders:
    tomography.

    The result is `(batch, channels, angles, side)`.

    Arguments:
        angles: in radians; at 0 each sum is over a column.

    Raises:
        ValueError: for angles that are not one or more finite numbers; when applied to samples that
            are not square images.

    Example:
        >>> sd.Radon([0.0, 0.5])(torch.ones(3, 1, 8, 8)).shape
        torch.Size([3, 1, 2, 8])
    """

    angles: Sequence[float]

    def __post_init__(self) -> None:
        try:
            valid = len(self.angles) > 0 and all(math.isfinite(angle) for angle in self.angles)
        except (TypeError, ValueError, RuntimeError):  # not a sequence, or not of numbers
            valid = False
        if not valid:
            raise ValueError(
                "angles are one or more finite numbers in radians, such as [0.0, 0.5]; not "
                f"{self.angles!r:.60}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        _require_image(x, self)
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f"Radon is for square images, not {x.shape[-2]} x {x.shape[-1]}")
        sums = [self._rotated(x, float(angle)).sum(dim=-2) for angle in self.angles]
        return torch.stack(sums, dim=-2)

    def _rotated(self, x: Tensor, angle: float) -> Tensor:
        cos = math.cos(angle)
        sin = math.sin(angle)
        turn = x.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(x), 2, 3)
        grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


def _require_image(x: Tensor, operator: object) -> None:
    """Refuses samples that are not images.

    Raises:
        ValueError: with their shape.
    """
    if x.ndim != 4:
        raise ValueError(
            f"{type(operator).__name__} is for images (channels, height, width), not samples of "
            f"shape {tuple(x.shape[1:])}"
        )


def _require_adjoint(operator: AbstractOperator, x: Tensor, measured: Tensor, v: Tensor) -> None:
    """Refuses an adjoint A^T for which <A x, v> is not <x, A^T v>.

    Arguments:
        measured: A x.

    Raises:
        ValueError: says whose adjoint it is, and what to do.
    """
    own = type(operator).adjoint is not AbstractOperator.adjoint
    if isinstance(operator, LinearMap):
        own = operator.transpose is not None
    event = tuple(x.shape[1:])
    try:
        back = operator.adjoint(v, event).detach()
    except RuntimeError as error:
        if own:
            raise
        raise ValueError(_NO_DERIVATIVE) from error
    direct = float((measured * v).sum())
    scale = float(measured.norm() * v.norm()) or 1.0
    fits = tuple(back.shape[1:]) == event
    if fits and abs(direct - float((x * back).sum())) <= _TOLERANCE * scale:
        return
    raise ValueError(
        "the adjoint is not that of the operator: <A x, v> is not <x, A^T v>. Leave it out, and it "
        "is computed by autograd"
        if own
        else _NO_DERIVATIVE
    )


def operator_of(value: Any) -> AbstractOperator:  # noqa: ANN401 - what a user gives
    """An operator, a matrix, a function, or a pair of a function and its adjoint, as an operator.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, AbstractOperator):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return Matrix(torch.as_tensor(value))
    functions: Any = value if isinstance(value, tuple) else (value,)
    if 1 <= len(functions) <= 2 and all(map(callable, functions)) and not isinstance(value, type):
        return LinearMap(*functions)
    raise TypeError(
        "the operator is a matrix (m, d), a linear function of a batch, a pair of such a function "
        f"and its adjoint, or an operator such as Mask(mask); not {value!r:.60}"
    )


def require_linear(
    operator: AbstractOperator, event: tuple[int, ...], like: Tensor
) -> tuple[int, ...]:
    """The shape of the measurements of a sample, after checks of linearity and of the adjoint.

    Arguments:
        event: the shape of one sample.
        like: a tensor with the dtype and the device of samples.

    Raises:
        ValueError: when the map is not linear, depends on the position in the batch, or measures
            nothing, or when `adjoint` is not its adjoint.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *event, generator=generator).to(like)
    with torch.no_grad():
        value = operator(torch.cat([x, x[:1] + 2 * x[1:], torch.zeros_like(x[:1])]))
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != 4:
        raise ValueError(
            "the operator must map a batch (batch, *shape) to (batch, *measured); of 4 samples it "
            f"returned {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        )
    if not value.numel():
        raise ValueError(f"the operator measures nothing: it returned {tuple(value.shape)}")
    size = float(value[:3].abs().max()) or 1.0
    if not float((value[0] + 2 * value[1] - value[2]).abs().max()) <= _TOLERANCE * size:
        raise ValueError(
            "the operator is not linear: A(x + 2 z) is not A(x) + 2 A(z). An affine map has its "
            "offset in y; for other maps give log p(y | x), as Observation(y, log_likelihood)"
        )
    at_zero = float(value[3].abs().max())
    if not at_zero <= _ROUNDING * torch.finfo(x.dtype).eps * size:
        raise ValueError(
            f"the operator is not linear: A(0) is {at_zero:g}, not 0. Subtract A(0) from the "
            "results of the operator, and from y"
        )
    v = torch.randn(value[:1].shape, generator=generator).to(value)
    _require_adjoint(operator, x[:1], value[:1], v)
    return tuple(value.shape[1:])


def gram(
    operator: AbstractOperator, event: tuple[int, ...], measured: tuple[int, ...], like: Tensor
) -> Tensor:
    """A A^T, `(m, m)` in float64.

    Raises:
        ValueError: for more than MAX_GRAM measurements.
    """
    m = math.prod(measured)
    if m > MAX_GRAM:
        raise ValueError(
            f"A A^T of {m} measurements is not computed (the most are {MAX_GRAM}): define "
            "gram_diagonal of the operator if it is a multiple of the identity, or take "
            "covariance='jacobian'"
        )
    unit = torch.eye(m).to(like).reshape(m, *measured)
    with torch.no_grad():
        rows = [operator(operator.adjoint(part, event)) for part in unit.split(256)]
    return torch.cat(rows).reshape(m, m).to(torch.float64)
