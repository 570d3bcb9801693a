"""What the adaptive loop carries: the samples on their way, what is known of those that are there,
and trees of tensors.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._solve.solution import Solution, Status
from sdekit._solvers.contract import Tree
from sdekit.elementary import broadcast


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some rows of every tensor."""
    return tree[rows] if isinstance(tree, Tensor) else tuple(take(part, rows) for part in tree)


def where(accept: Tensor, new: Tree, old: Tree) -> Tree:
    """By row, the new or the old of every tensor."""
    if isinstance(new, Tensor):
        return torch.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return tuple(where(accept, a, b) for a, b in zip(new, old, strict=True))


def spread(tree: Tree, rows: Tensor, size: int) -> Tree:
    """Every tensor as some rows of a larger one, else 0."""
    if isinstance(tree, Tensor):
        return tree.new_zeros(size, *tree.shape[1:]).index_copy(0, rows, tree)
    return tuple(spread(part, rows, size) for part in tree)


class Move(NamedTuple):
    """Steps that were accepted, one a sample; tensors with the batch first.

    Attributes:
        samples: which of the whole batch they are.
        t0, t1: where each step begins and ends, float64.
        x: the states at t1.
        dense: what `AbstractSolver.interpolate` makes the states between out of; None where the
            solver has nothing.
    """

    samples: Tensor
    t0: Tensor
    t1: Tensor
    x: Tensor
    dense: Tree


@dataclass
class Working:
    """The samples still on their way; tensors with the batch first: x and state where the solve is,
    all else on the host.

    index: their rows in the whole batch. left: the time to the end. h: the length of the next step,
    without sign. before: q of the last two accepted steps. due: the number of the output that comes
    next. gone: infinity for those that have finished or failed and not left yet, else 0. extra:
    evaluations for output, which not all make.
    """

    index: Tensor
    x: Tensor
    t: Tensor
    left: Tensor
    h: Tensor
    state: Tree
    before: Tensor
    accepted: Tensor
    due: Tensor
    gone: Tensor
    extra: Tensor

    @staticmethod
    def of(x0: Tensor, t: Tensor, left: Tensor, h: Tensor, state: Tree) -> "Working":
        """All samples before the first step."""
        index = torch.arange(len(x0))
        none = torch.zeros_like(index)
        before = t.new_ones(len(x0), 2)
        return Working(
            index=index,
            x=x0,
            t=t,
            left=left,
            h=h,
            state=state,
            before=before,
            accepted=none,
            due=none + 1,
            gone=torch.zeros_like(t),
            extra=none,
        )

    def advance(self, t1: Tensor, left: Tensor, accept: Tensor, x1: Tensor, state1: Tree) -> None:
        """Moves the samples whose steps are accepted to t1, from which `left` is left."""
        there = accept.to(self.x.device, non_blocking=True)
        self.x = where(there, x1, self.x)
        self.state = where(there, state1, self.state)
        self.t = torch.where(accept, t1, self.t)
        self.left = torch.where(accept, left, self.left)
        self.accepted = self.accepted + accept

    def rows(self, keep: Tensor) -> "Working":
        there = keep.to(self.x.device, non_blocking=True)
        return Working(
            *(
                take(getattr(self, p.name), there if p.name in ("x", "state") else keep)
                for p in fields(self)
            )
        )


@dataclass(frozen=True)
class Found:
    """What there is to return, a row a sample of the whole batch: the states where the solve is,
    all else on the host.
    """

    x: Tensor
    xs: Tensor | None
    reached: Tensor
    evaluations: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor

    @staticmethod
    def of(x0: Tensor, ts: list[float], *, save: bool) -> "Found":
        reached = torch.zeros(len(x0), dtype=torch.float64)
        xs = x0.new_full((len(ts), *x0.shape), torch.nan) if save else None
        if xs is not None:
            xs[0] = x0
        return Found(
            torch.full_like(x0, torch.nan),
            xs,
            reached,
            *reached.new_zeros(4, len(x0), dtype=torch.int64),
        )

    def keep(
        self, now: Working, rows: Tensor, status: Tensor, tries: int, evaluations: int
    ) -> None:
        """Writes down those that have finished or failed."""
        index = now.index[rows]
        done = status[rows] == Status.DONE
        self.status[index] = status[rows]
        self.reached[index] = now.t[rows]
        self.evaluations[index] = evaluations + now.extra[rows]
        self.accepted[index] = now.accepted[rows]
        self.rejected[index] = tries - now.accepted[rows]
        index, rows, done = (
            part.to(self.x.device, non_blocking=True) for part in (index, rows, done)
        )
        self.x[index] = torch.where(broadcast(done, now.x) != 0, now.x[rows], torch.nan)

    def solution(self, ts: Tensor, seed: int | Tensor | None) -> Solution:
        if self.xs is not None:
            self.xs[-1] = self.x
        counts = (self.evaluations, self.accepted, self.rejected, self.status)
        evaluations, accepted, rejected, status = (
            part.to(self.x.device, non_blocking=True) for part in counts
        )
        return Solution(self.x, ts, self.xs, seed, evaluations, accepted, rejected, status)
