"""Derivatives of functions that act on each coordinate alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def derivative(
    function: Callable[[Tensor], Tensor], x: Tensor, weigh: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """y = function(x), and its derivative at x times weigh(y), for a function that acts on each
    coordinate alone.

    Its Jacobian is its own transpose, which torch applies faster. `torch.func` works inside its own
    transforms and in compiled code; autograd does it where that refuses, which is where saved
    tensors have hooks, as under checkpointing, and in inference mode, where older versions of torch
    return zeros.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        try:
            y, pull, *_ = torch.func.vjp(function, x)
            return y, pull(weigh(y))[0]
        except RuntimeError:
            if not _saved_tensors_have_hooks():
                raise
    record = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.enable_grad():
        at = x.view_as(x) if x.requires_grad else x.clone().requires_grad_()
        y = function(at)
        weight = weigh(y if record else y.detach()).clone()
        (product,) = torch.autograd.grad(
            y, at, weight, create_graph=record, allow_unused=True, materialize_grads=True
        )
    return (y, product) if record else (y.detach(), product)


def _saved_tensors_have_hooks() -> bool:
    """Whether hooks on saved tensors are set: torch then refuses to disable them."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True
