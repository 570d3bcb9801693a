"""The map between data in their own range and dtype and a model's inputs."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.float32, torch.float64)
} | {
    f"{sign}int{bits}": getattr(torch, f"{sign}int{bits}")
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}


def _floats(name: str, value: Any) -> float | tuple[float, ...]:  # noqa: ANN401 - a user's
    """A number, or one for each channel, of which JSON makes a list.

    Raises:
        ValueError: for other values.
    """
    try:
        return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} of Scale is a number, or a tuple with one for each channel, not {value!r:.60}"
        ) from None


@dataclass(frozen=True)
class Scale:
    """The map from data to model inputs x, and its inverse:

        x = (data + u - shift) / unit.

    Levels 0, ..., levels - 1 are dequantised by u, uniform on [0, 1). Then the expected log-density
    of x, plus a constant, is a lower bound of their log-probability (Theis, van den Oord, Bethge,
    2016, arXiv 1511.01844). For continuous data u = 0.

    Attributes:
        shift: the value of the data that corresponds to x = 0: a number, or one for each coordinate
            of vectors.
        unit: the difference in the data that corresponds to a difference of 1 in x, likewise.
        levels: the number of levels of quantised data; None for continuous data.
        dtype: that of the data, such as "uint8".

    Raises:
        ValueError: for a shift or a unit that is not a number or several, a shift that is not
            finite, a unit that is not positive, fewer than two levels, or a dtype that is neither
            integer nor floating, or that does not hold the levels.

    Example:
        >>> scale = sd.data.Scale(shift=8.0, unit=8.0, levels=16, dtype="uint8")
        >>> levels = torch.tensor([0, 5, 15], dtype=torch.uint8)
        >>> x = scale.encode(levels, torch.full((3,), 0.5))
        >>> x.tolist()
        [-0.9375, -0.3125, 0.9375]
        >>> scale.decode(x).tolist()
        [0, 5, 15]
    """

    shift: float | tuple[float, ...] = 0.0
    unit: float | tuple[float, ...] = 1.0
    levels: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("shift", "unit"):
            object.__setattr__(self, name, _floats(name, getattr(self, name)))
        units = self.unit if isinstance(self.unit, tuple) else (self.unit,)
        shifts = self.shift if isinstance(self.shift, tuple) else (self.shift,)
        valid_levels = isinstance(self.levels, Integral) and self.levels > 1
        valid_units = all(0 < unit < math.inf for unit in units) and all(map(math.isfinite, shifts))
        if not valid_units or not (self.levels is None or valid_levels):
            raise ValueError(
                "a scale has finite shifts, positive units, and a whole number of levels, two "
                f"levels or more, or None: {self}"
            )
        object.__setattr__(self, "levels", None if self.levels is None else int(self.levels))
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(_DTYPES)}")
        dtype = _DTYPES[self.dtype]
        floating = dtype.is_floating_point
        largest = int(2 / torch.finfo(dtype).eps) if floating else torch.iinfo(dtype).max
        if self.levels is not None and self.levels - 1 > largest:
            raise ValueError(
                f"levels 0, ..., {self.levels - 1} do not fit in {self.dtype}, which holds whole "
                f"numbers up to {largest}: give another dtype, such as 'int64'"
            )

    @classmethod
    def quantised(
        cls, levels: int, low: float = -1.0, high: float = 1.0, dtype: str = "uint8"
    ) -> "Scale":
        """The scale that maps dequantised levels to [low, high); for more than 256 of them with
        another dtype.
        """
        unit = levels / (high - low)
        return cls(-low * unit, unit, levels, dtype)

    @classmethod
    def standard(cls, values: Tensor) -> "Scale":
        """The scale that gives continuous data `(N, ...)` mean 0 and standard deviation 1.

        For vectors `(N, d)` this holds for each coordinate.

        Raises:
            TypeError: for values that are not a floating tensor.
        """
        _require_tensor("values", values)
        if not values.is_floating_point():
            raise TypeError(
                f"values of {values.dtype} are not continuous: use values.float(), or for levels "
                "Scale.quantised"
            )
        std, mean = torch.std_mean(
            values.double(), dim=0 if values.ndim == 2 else None, correction=0
        )
        constant = std <= torch.finfo(values.dtype).eps * mean.abs()
        shift, unit = (
            tuple(value.tolist()) if value.ndim else float(value)
            for value in (mean, std.masked_fill(constant, 1.0))
        )
        return cls(shift, unit, dtype=str(values.dtype).removeprefix("torch."))

    @property
    def low(self) -> float:
        """The smallest x of dequantised levels; `low`, `high` and `levels` are arguments of
        `bits_per_dim`.
        """
        return float(self._inputs(torch.tensor(0.0, dtype=torch.float64)))

    @property
    def high(self) -> float:
        """The upper bound of x of dequantised levels; for scales with `levels` only."""
        assert self.levels is not None
        return float(self._inputs(torch.tensor(self.levels, dtype=torch.float64)))

    def encode(self, x: Tensor, u: Tensor | float = 0.5) -> Tensor:
        """The inputs of a model, `(batch, *shape)`.

        Args:
            x: data, `(batch, *shape)`.
            u: the dequantisation of levels, in [0, 1), shaped like x; the middle of each level
                unless given. Not used for continuous data.

        Returns:
            for levels a tensor in the dtype of u, torch's default dtype if u is a number; for
            continuous data in that of the data, at least float32.

        Raises:
            TypeError: for data that are not a tensor.
            ValueError: for data that are not vectors, where shift or unit has one number for each
                coordinate.
        """
        _require_tensor("x", x)
        if x.ndim > 2 and (isinstance(self.shift, tuple) or isinstance(self.unit, tuple)):
            raise ValueError(
                "a scale with a shift or unit for each coordinate is for vectors, and the data "
                f"have shape {tuple(x.shape)}: flatten each sample, or give one number"
            )
        if self.levels is None:
            return self._inputs(x.to(torch.promote_types(x.dtype, torch.float32)))
        dtype = u.dtype if isinstance(u, Tensor) else torch.get_default_dtype()
        return self._inputs(x.to(dtype) + u)

    def decode(self, x: Tensor) -> Tensor:
        """Data in their own range and dtype, shaped like x: the inverse of `encode`.

        Levels are rounded down, and clipped to 0, ..., levels - 1.

        Raises:
            TypeError: for an x that is not a tensor.
            ValueError: for an x that is not finite, where the data are levels; or not vectors of
                the scale's number of coordinates.
        """
        _require_tensor("x", x)
        dtype = _DTYPES[self.dtype]
        x = x.to(torch.promote_types(x.dtype, torch.promote_types(dtype, torch.float32)))
        values = x * self._broadcastable(self.unit, x) + self._broadcastable(self.shift, x)
        if self.levels is None:
            return values.to(dtype)
        if not bool(x.isfinite().all()):
            raise ValueError(
                "x has NaN or infinite values, which have no level; find out why those samples "
                "diverged"
            )
        level = values.floor()
        # Rounding moves values at the bounds of a level: which one x is in is what `encode` says.
        level = level - (x < self._inputs(level)).to(level)
        level = level + (x >= self._inputs(level + 1)).to(level)
        return level.clamp(0, self.levels - 1).to(dtype)

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """log p(x) - log p(data) for one sample of this shape, in nats: the sum of log(unit) over
        its coordinates.

        Raises:
            ValueError: for another shape than that of the vectors that the scale is for.
        """
        if isinstance(self.unit, tuple):
            if tuple(shape) != (len(self.unit),):
                raise ValueError(
                    f"the scale has units for vectors of {len(self.unit)} coordinates, and the "
                    f"sample has shape {shape}"
                )
            return sum(map(math.log, self.unit))
        return math.prod(shape) * math.log(self.unit)

    def _inputs(self, values: Tensor) -> Tensor:
        return (values - self._broadcastable(self.shift, values)) / self._broadcastable(
            self.unit, values
        )

    @staticmethod
    def _broadcastable(value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
        if not isinstance(value, tuple):
            return value
        if like.ndim and like.shape[-1] != len(value):
            raise ValueError(
                f"the scale is for vectors of {len(value)} coordinates, and the data have shape "
                f"{tuple(like.shape)}"
            )
        return like.new_tensor(value)


def _require_tensor(name: str, value: object) -> None:
    """Refuses data that are not a tensor, such as an array.

    Raises:
        TypeError: with how to convert them.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor (N, ...), not {type(value).__name__}; use "
            f"torch.as_tensor({name})"
        )
