"""Derivatives of elementwise functions."""

from collections.abc import Callable

import torch
from torch import Tensor


def derivative(
    function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """y = function(x), and its Jacobian at x times cotangent(y), for a function that acts
    elementwise.

    Such a Jacobian equals its transpose, which torch applies faster. `torch.func` works inside its
    own transforms and in compiled code. Autograd is used where `torch.func` fails: if saved tensors
    have hooks, as under checkpointing, and in inference mode, where older versions of torch return
    zeros.
    """
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        try:
            y, vjp, *_ = torch.func.vjp(function, x)
            return y, vjp(cotangent(y))[0]
        except RuntimeError:
            if not _saved_tensors_have_hooks():
                raise
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.enable_grad():
        point = x.view_as(x) if x.requires_grad else x.clone().requires_grad_()
        y = function(point)
        vector = cotangent(y if differentiable else y.detach()).clone()
        (gradient,) = torch.autograd.grad(
            y, point, vector, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
    return (y, gradient) if differentiable else (y.detach(), gradient)


def _saved_tensors_have_hooks() -> bool:
    """Whether hooks on saved tensors are set; torch then refuses to disable them."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True
