"""The state of the adaptive loop: the active samples, the results of the others, and trees of
tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sdekit._solve.solution import Solution, Status
from sdekit._solvers.contract import Tree
from sdekit.calling import require_values
from sdekit.elementary import broadcast

Host = NDArray[np.float64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]
Number = TypeVar("Number", np.float64, np.int64)


@contextmanager
def called_for_some(rows: int, total: int) -> Iterator[None]:
    """Adds to an error of a user's function that it is called for some rows of a batch, which may
    be its cause.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if rows < total and not hasattr(error, "__notes__"):
            error.add_note(
                f"f, g and events are called for some of the {total} samples, such as those that "
                "have not ended or that an event stops. If one of these functions uses numbers of "
                "each sample, shapes differ then: add the numbers to the state, or define the "
                "equation as a subclass of AbstractSDE with a method rows(index)."
            )
        raise


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some rows of every tensor."""
    return tree[rows] if isinstance(tree, Tensor) else tuple(take(part, rows) for part in tree)


def tensors(tree: Tree) -> list[Tensor]:
    """The tensors of a tree."""
    if isinstance(tree, Tensor):
        return [tree]
    return (
        [tensor for part in tree for tensor in tensors(part)]
        if isinstance(tree, tuple | list)
        else []
    )


def where(accept: Tensor, new: Tree, old: Tree) -> Tree:
    """torch.where by row for every tensor."""
    if new is old:
        return old
    if isinstance(new, Tensor):
        return torch.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return tuple(where(accept, a, b) for a, b in zip(new, old, strict=True))


def scatter_rows(tree: Tree, rows: Tensor, size: int) -> Tree:
    """Every tensor as rows of a larger one that is 0 elsewhere."""
    if isinstance(tree, Tensor):
        return tree.new_zeros(size, *tree.shape[1:]).index_copy(0, rows, tree)
    return tuple(scatter_rows(part, rows, size) for part in tree)


def to_device(device: torch.device, *arrays: NDArray[Any]) -> list[Tensor]:
    """Small arrays of the host as tensors on a device, without waiting for its queued work."""
    return [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]


def on_host(values: Tensor, kind: type[Number] = np.float64) -> NDArray[Number]:
    """Numbers of a device as an array; the computation waits for them.

    Raises:
        RuntimeError: under torch.func.vmap.
    """
    require_values(values, "adaptive steps read the error of each sample")
    if is_functorch_wrapped_tensor(values):  # whose memory NumPy cannot read
        return np.array(values.tolist(), dtype=kind)
    return values.detach().cpu().numpy().astype(kind, copy=False)


class AcceptedSteps(NamedTuple):
    """Accepted steps, one per sample; tensors with the batch first.

    Attributes:
        samples: the rows of these samples in the full batch.
        t0, t1: the start and the end of each step, float64; if an event stopped a sample, t1 is the
            time of the event.
        x: the states at t1.
        dense: the data that `AbstractSolver.dense` converts for the interpolation within the whole
            step, or None.
    """

    samples: Tensor
    t0: Tensor
    t1: Tensor
    x: Tensor
    dense: Tree


@dataclass
class ActiveSamples:
    """The samples that are still being solved, the batch first: x and state are tensors on the
    device of the solve, all others arrays on the host, where NumPy's calls take less time. Arrays
    other than h and ended are replaced, not changed.

    index: their rows in the full batch. remaining: the time to the end. h: the length of the next
    step, without sign. previous: q of the last two accepted steps. next_output: the number of the
    next output. ended: infinity for samples that have finished or failed and are not yet removed,
    else 0. output_evaluations: additional evaluations for output within steps.
    """

    index: Rows
    x: Tensor
    t: Host
    remaining: Host
    h: Host
    state: Tree
    previous: Host
    accepted: Rows
    next_output: Rows
    ended: Host
    output_evaluations: Rows

    @staticmethod
    def of(x0: Tensor, t: Host, remaining: Host, h: Host, state: Tree) -> "ActiveSamples":
        """All samples before the first step."""
        index = np.arange(len(x0), dtype=np.int64)
        zeros = np.zeros_like(index)
        previous = np.ones((len(x0), 2))
        return ActiveSamples(
            index=index,
            x=x0,
            t=t,
            remaining=remaining,
            h=h,
            state=state,
            previous=previous,
            accepted=zeros,
            next_output=zeros + 1,
            ended=np.zeros_like(t),
            output_evaluations=zeros,
        )

    def advance(
        self, t1: Host, remaining: Host, accept: Flags, x1: Tensor, states: tuple[Tree, Tree]
    ) -> None:
        """Moves the samples whose steps are accepted to t1.

        remaining: the time from there. states: what the solver receives after an accepted step, and
        after a rejected one.
        """
        state1, state0 = states
        if not accept.all():
            (there,) = to_device(self.x.device, accept)
            x1 = where(there, x1, self.x)
            state1 = where(there, state1, state0)
            t1 = np.where(accept, t1, self.t)
            remaining = np.where(accept, remaining, self.remaining)
        self.x = x1
        self.state = state1
        self.t = t1
        self.remaining = remaining
        self.accepted = self.accepted + accept

    def rows(self, rows: Rows) -> "ActiveSamples":
        (there,) = to_device(self.x.device, rows)
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        tensors = {name: take(parts.pop(name), there) for name in ("x", "state")}
        return ActiveSamples(**tensors, **{name: part[rows] for name, part in parts.items()})


@dataclass(frozen=True)
class Results:
    """The results, one row per sample of the full batch: the states are tensors on the device of
    the solve, all others arrays on the host.
    """

    x: Tensor
    xs: Tensor | None
    reached: Host
    evaluations: Rows
    accepted: Rows
    rejected: Rows
    status: Rows

    @staticmethod
    def of(x0: Tensor, ts: list[float], *, save: bool) -> "Results":
        xs = x0.new_full((len(ts), *x0.shape), torch.nan) if save else None
        if xs is not None:
            xs[0] = x0
        return Results(
            torch.full_like(x0, torch.nan),
            xs,
            np.zeros(len(x0)),
            *np.zeros((4, len(x0)), dtype=np.int64),
        )

    def keep(
        self, active: ActiveSamples, rows: Rows, status: Rows, rounds: int, evaluations: int
    ) -> None:
        """Stores the results of samples that have finished or failed."""
        index = active.index[rows]
        done = status[rows] == Status.DONE
        self.status[index] = status[rows]
        self.reached[index] = active.t[rows]
        self.evaluations[index] = evaluations + active.output_evaluations[rows]
        self.accepted[index] = active.accepted[rows]
        self.rejected[index] = rounds - active.accepted[rows]
        there, own, ended = to_device(self.x.device, index, rows, done)
        self.x[there] = torch.where(broadcast(ended, active.x) != 0, active.x[own], torch.nan)

    def solution(self, ts: Tensor, seed: int | Tensor | None) -> Solution:
        if self.xs is not None:
            self.xs[-1] = self.x
        counts = (self.evaluations, self.accepted, self.rejected, self.status)
        evaluations, accepted, rejected, status = to_device(self.x.device, *counts)
        return Solution(self.x, ts, self.xs, seed, evaluations, accepted, rejected, status)
