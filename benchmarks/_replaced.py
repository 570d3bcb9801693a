"""A plugin of pytest (`-p _replaced`) by which torchdiffeq's and torchsde's functions are sdekit's,
unless SDEKIT_REPLACE=0, and what is handed to the originals is counted.
"""

import atexit
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
import torchsde
from torch import Tensor

import sdekit
from sdekit.interop import _odeint, _odeint_adjoint

calls: Counter[str] = Counter()
handed: Counter[str] = Counter()


def counted(name: str, function: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    """The function, each call of which is counted."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        counts[f"{name}, {keywords.get('method')}" if counts is handed else name] += 1
        return function(*arguments, **keywords)

    return run


def close(a: Tensor, b: Tensor, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """torch.testing.assert_allclose, which newer versions of torch do not have."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)


def report() -> None:
    """What was called, and what of it was handed over."""
    print(f"calls of sdekit: {dict(calls)}; handed over: {dict(handed)}")


if not hasattr(torch.testing, "assert_allclose"):
    setattr(torch.testing, "assert_allclose", close)  # noqa: B010
if os.environ.get("SDEKIT_REPLACE") != "0":
    for module, names in (
        (torchdiffeq, ("odeint", "odeint_adjoint", "odeint_dense", "odeint_event")),
        (torchsde, ("sdeint", "sdeint_adjoint")),
    ):
        for name in names:
            setattr(module, name, counted(name, getattr(sdekit, name), calls))
    for module, name in (
        (_odeint, "torchdiffeq_odeint"),
        (_odeint_adjoint, "torchdiffeq_adjoint"),
    ):
        setattr(module, name, counted(name, getattr(module, name), handed))
    atexit.register(report)
