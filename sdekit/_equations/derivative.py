"""Derivatives of elementwise functions, and a check that torch can take one."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdekit.calling import has_hidden_values


def derivative(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    cotangent: Callable[[Tensor], Tensor],
    unseen: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """y = function(x), and its Jacobian at x times cotangent(y), for a function that acts
    elementwise.

    Such a Jacobian equals its transpose, which torch applies faster. `torch.func` works inside its
    own transforms and in compiled code. Autograd is used where `torch.func` fails: if saved tensors
    have hooks, as under checkpointing, and in inference mode, where older versions of torch return
    zeros. `unseen` is called if torch finds no way from x to y, so that the Jacobian is 0.
    """

    def followed(x: Tensor) -> Tensor:
        y = function(x)
        if not y.requires_grad:
            unseen()
        return y

    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        try:
            y, vjp, *_ = torch.func.vjp(followed, x)
            return y, vjp(cotangent(y))[0]
        except RuntimeError:
            if not _saved_tensors_have_hooks():
                raise
    differentiable = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.enable_grad():
        point = x.view_as(x) if x.requires_grad else x.clone().requires_grad_()
        y = function(point)
        gradient = None
        if y.requires_grad:
            vector = cotangent(y if differentiable else y.detach()).clone()
            (gradient,) = torch.autograd.grad(
                y, point, vector, create_graph=differentiable, allow_unused=True
            )
        if gradient is None:
            unseen()
            gradient = torch.zeros_like(x)
    return (y, gradient) if differentiable else (y.detach(), gradient)


def require_visible(name: str, need: str, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Refuses a function whose derivative torch takes as 0, although its values change next to x.

    Arguments:
        name: the function, for the message.
        need: what needs its derivative.

    Raises:
        RuntimeError: with what to do.
    """
    if varies(function, x):
        raise RuntimeError(
            f"{name} depends on x, but returns a tensor through which no derivative passes, and "
            f"{need} needs one: leave .detach(), torch.no_grad() and buffers out of it"
        )


def varies(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the values of a function change next to x, other than by a jump; False where
    `torch.compile` or `torch.func.vmap` hides them.
    """
    if torch.compiler.is_compiling() or has_hidden_values(x) or not x.numel():
        return False
    width = torch.finfo(x.dtype).eps ** 0.25 * (1 + x.abs())
    with torch.no_grad():
        # Copies, since the function may return one buffer each time.
        a, b, c = (function(x + k * width).clone() for k in (1, 2, 3))
        # Where it jumps, with a derivative of 0 on both sides, it changes once only.
        changes = ((b - a).abs() > 0) & ((c - b).abs() > 0)
    return not has_hidden_values(changes) and bool(changes.any())


def _saved_tensors_have_hooks() -> bool:
    """Whether hooks on saved tensors are set; torch then refuses to disable them."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True
