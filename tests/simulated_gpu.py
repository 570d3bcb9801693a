"""A GPU that is not there: a device that holds CPU values, refuses to mix devices and records what
the host would wait for.

    with SimulatedGPU() as gpu:
        model = model.to(DEVICE)
        gpu.clear()
        sample(model, 4, steps=20)
        print(gpu.kernels, gpu.waits)

Recorded as waits: host reads (`item`, `bool`, `tolist`, `nonzero`, `unique`, boolean indexing,
`repeat_interleave`) and copies between host and device that are not `non_blocking`. A count at two
numbers of steps shows what would stall a real GPU once a step. Kernels are the operations on the
device that are neither views nor bare allocations: close to what a real GPU launches.

It is a model of the behaviour: nothing runs asynchronously and nothing is timed. The device is
registered in torch for the rest of the process, and `torch.tensor` and `torch.as_tensor` are
replaced inside the block, so use it in a process of its own.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "simulated"
DEVICE = f"{NAME}:0"
_CPU = torch.device("cpu")
_aten = torch.ops.aten
# Return a Python number.
_SCALARS = (_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default)
_READS = (
    *_SCALARS,
    _aten.item.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.bincount.default,
)
_READS = (
    *_READS,
    _aten.unique_consecutive.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
)
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_FREE = (
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::_local_scalar_dense",
)


def available() -> bool:
    """Whether this version of torch can host a device written in Python."""
    try:
        module = importlib.import_module("torch.utils.backend_registration")
    except ImportError:
        return False
    return hasattr(module, "_setup_privateuseone_for_python_backend")


class MixedDevicesError(RuntimeError):
    """An operation on tensors of the CPU and of the device, which a GPU refuses."""


class Wait(NamedTuple):
    """What the host would wait for, and the innermost frames of the library that asked for it."""

    kind: str
    where: str


class _Ledger:
    """What the current `SimulatedGPU` has recorded; one per process, since tensors outlive the
    block.
    """

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.kernels = 0

    def wait(self, kind: str) -> None:
        frames = [
            f
            for f in traceback.extract_stack()
            if f"{os.sep}sdekit" in f.filename and "simulated_gpu" not in f.filename
        ]
        where = " < ".join(
            f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames[-3:])
        )
        self.waits.append(Wait(kind, where))


_LEDGER = _Ledger()


class Held(Tensor):
    """A tensor on the device: a wrapper of its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "Held":
        held = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(DEVICE),
            requires_grad=False,
        )
        held.values = values
        return held

    def __init__(self, values: Tensor) -> None:
        """The work is that of `__new__`."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Held({self.values})"

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, tuple(args), dict(kwargs or {}))

    def tolist(self) -> Any:
        _LEDGER.wait("tolist")
        return self.values.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a tensor of the device cannot be converted to numpy; use Tensor.cpu() first"
        )

    __array__ = numpy


class SimulatedGPU(TorchDispatchMode):
    """The device, inside a `with` block.

    Attributes:
        waits: what the host would have waited for since `clear`.
        kernels: how many operations the device would have run since then.
    """

    @property
    def waits(self) -> list[Wait]:
        return _LEDGER.waits

    @property
    def kernels(self) -> int:
        return _LEDGER.kernels

    def clear(self) -> None:
        """Forgets what was recorded."""
        _LEDGER.waits = []
        _LEDGER.kernels = 0

    def __enter__(self) -> Self:
        _register()
        self._tensor = torch.tensor
        self._as_tensor = torch.as_tensor
        torch.tensor = self._placed_tensor
        torch.as_tensor = self._placed_as_tensor
        self.clear()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.tensor = self._tensor
        torch.as_tensor = self._as_tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def _placed_tensor(self, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """torch.tensor, which does not pass the dispatcher: numbers of the host, copied while it
        waits.
        """
        if not _is_ours(device):
            return self._tensor(
                data, **(options if device is None else {**options, "device": device})
            )
        return self._tensor(data, **options).to(device)

    def _placed_as_tensor(
        self, data: Any, dtype: torch.dtype | None = None, device: Any = None
    ) -> Tensor:
        if isinstance(data, Tensor) or not _is_ours(device):
            return self._as_tensor(data, dtype=dtype, device=device)
        return self._as_tensor(data, dtype=dtype).to(device)


def _register() -> None:
    """Makes the device known to torch, once a process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    importlib.import_module(
        "torch.utils.backend_registration"
    )._setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME, None)
    if module is not None and not hasattr(module, "get_amp_supported_dtype"):
        module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: on the values, with what it would have meant on a GPU recorded or refused."""
    name = func._schema.name
    given = [part for part in _parts((*args, *kwargs.values())) if isinstance(part, Tensor)]
    ours = [part for part in given if isinstance(part, Held)]
    hosts = [part for part in given if not isinstance(part, Held)]
    device = kwargs.get("device")
    on_device = bool(ours) if device is None else _is_ours(device)
    if name == "aten::copy_":
        on_device = isinstance(args[0], Held)
    if ours:
        _record_reads(func, name, args, kwargs)
    if name in _COPIES:
        _record_copy(args, kwargs, on_device)
    elif ours and hosts and device is None:
        _require_one_device(func, name, args, hosts)
    generator = kwargs.get("generator")
    if generator is not None and on_device and generator.device.type == "cpu":
        raise MixedDevicesError(f"{name}: a generator of the CPU for a tensor of the device")
    if on_device and not func.is_view and name not in _FREE:
        _LEDGER.kernels += 1
    return _wrapped(func, args, kwargs, on_device=on_device, aliased=bool(ours) and device is None)


def _wrapped(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, on_device: bool, aliased: bool
) -> Any:
    """The operation itself, done on the CPU; its results are put on the device where they belong
    there.
    """
    plain = {name: _mapped(_unwrap, value) for name, value in kwargs.items()}
    if kwargs.get("device") is not None:
        plain["device"] = _CPU
    out = func(*_mapped(_unwrap, args), **plain)
    if func in _SCALARS or not on_device:
        return out
    out = _mapped(_wrap, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if aliased else out


def _parts(given: Sequence[Any]) -> Iterator[Any]:
    """What an operation takes, out of its lists. (torch's own walk over trees of any containers
    takes most of the time of an operation.)
    """
    for part in given:
        if isinstance(part, list | tuple):
            yield from _parts(part)
        else:
            yield part


def _mapped(function: Callable[[Any], Any], given: Any) -> Any:
    """The same lists with a function of each part."""
    if isinstance(given, list | tuple):
        return type(given)([_mapped(function, part) for part in given])
    return function(given)


def _unwrap(part: Any) -> Any:
    return part.values if isinstance(part, Held) else part


def _wrap(part: Any) -> Any:
    return Held(part) if isinstance(part, Tensor) and not isinstance(part, Held) else part


def _record_reads(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if func in _READS:
        _LEDGER.wait(name)
    indices = args[1] if name in _INDEXING else ()
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        _LEDGER.wait(f"{name} by a mask")
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        _LEDGER.wait(name)


def _record_copy(args: tuple[Any, ...], kwargs: Mapping[str, Any], on_device: bool) -> None:
    """A copy across devices waits unless it is asked not to."""
    source = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
    waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if isinstance(source, Held) != on_device and waits:
        _LEDGER.wait("copy to the device" if on_device else "copy to the host")


def _require_one_device(
    func: Any, name: str, args: tuple[Any, ...], hosts: Sequence[Tensor]
) -> None:
    """Refuses tensors of both devices, as CUDA does: only numbers, and indices of a tensor on the
    device, may be the host's.

    Raises:
        MixedDevicesError: with the operation and the shapes.
    """
    large = [tuple(tensor.shape) for tensor in hosts if tensor.ndim]
    indexing = name.startswith(
        ("aten::index", "aten::_index_put", "aten::_unsafe_index")
    ) and isinstance(args[0], Held)
    if large and not (
        indexing
        and not (len(args) > 2 and isinstance(args[2], Tensor) and not isinstance(args[2], Held))
    ):
        raise MixedDevicesError(f"{name}: tensors of the device and of the CPU, of shapes {large}")
    if large:
        _LEDGER.wait("indices copied to the device")
    if func._schema.is_mutable and not isinstance(args[0], Held) and isinstance(args[0], Tensor):
        raise MixedDevicesError(
            f"{name}: a tensor of the CPU changed in place by one of the device"
        )
    if name in ("aten::cat", "aten::stack"):
        raise MixedDevicesError(f"{name}: tensors of the device and of the CPU")


def leave() -> None:
    """Ends a program: autograd's thread for the device does not end, and would abort Python."""
    sys.stdout.flush()
    os._exit(0)
