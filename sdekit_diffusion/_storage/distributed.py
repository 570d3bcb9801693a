"""Processes that work together, started by torchrun or in a process group."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Gloo detects at once that a process has ended, so the time of a computation need not be limited.
_TIMEOUT = timedelta(days=30)
_PROCESS_ENDED = (
    "another process ended before the work was done; run the same command again to resume"
)
_JOIN_COUNT = itertools.count()


def world() -> int:
    """The number of processes that work together."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def rank() -> int:
    """The number of this process among those that work together, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def wait() -> None:
    """Returns when all processes have called it.

    Raises:
        ConnectionError: when one of them is gone.
    """
    if world() > 1:
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise ConnectionError(_PROCESS_ENDED) from error


def own_device(device: str) -> str:
    """The device of this process: for "cuda" without a number, one GPU per process of a machine."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if device == "cuda" and "LOCAL_RANK" in os.environ
        else device
    )


def first_to_fail() -> bool:
    """Whether this process is the first one to fail, which reports the error."""
    return _started() == 1 or _first_claim()


@contextmanager
def largest() -> Iterator[Callable[[int], int]]:
    """A context with a function that all processes call together, and that returns the largest of
    their numbers to all.

    It uses gloo on the CPUs, and does not synchronise with GPUs.

    Raises:
        ConnectionError: from that function, when a process has ended.
    """
    if world() == 1:
        yield lambda number: number
        return
    group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    assert not isinstance(group, int)  # which processes outside the group receive

    def largest_of(number: int) -> int:
        value = torch.tensor(number)
        try:
            distributed.all_reduce(value, distributed.ReduceOp.MAX, group=group)
        except RuntimeError as error:
            raise ConnectionError(_PROCESS_ENDED) from error
        return int(value)

    try:
        yield largest_of
    finally:
        distributed.destroy_process_group(group)


def equal_on_all(number: int, device: torch.device) -> bool:
    """Whether all processes call this with the same number; waits for all of them."""
    ends = torch.tensor([number, -number], device=device)
    if world() > 1:
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return int(ends[0]) == -int(ends[1])


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """A context in which the processes that torchrun started form a process group; yields the
    device of this process.

    The backend is gloo on the CPU and NCCL on GPUs, one GPU for each process where no number is
    given. Without torchrun, or within such a block, it does nothing. A process whose torchrun is
    killed ends as well, so that it does not run beside its successors.

    Raises:
        ValueError: where torchrun started several processes and this torch cannot join them.
    """
    device = own_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _follow()
    if _started() == 1 or world() > 1:
        yield device
        return
    if not distributed.is_available():
        raise ValueError(
            "this build of torch has no torch.distributed; run one process, without torchrun"
        )
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
        _join("nccl")
    else:
        _join("gloo", timeout=_TIMEOUT)
    try:
        yield device
    except BaseException:
        first_to_fail()  # claimed now: when this process leaves, the others fail as well
        raise
    finally:
        distributed.destroy_process_group()


def _started() -> int:
    """The number of processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _join(backend: str, timeout: timedelta | None = None) -> None:
    from torch.distributed.distributed_c10d import PrefixStore

    store, number, total = _store()
    prefix = f"joined {next(_JOIN_COUNT)}"  # each group has keys of its own
    store = PrefixStore(prefix, store)
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=total, timeout=timeout
    )


@cache
def _store() -> "tuple[Store, int, int]":
    """The store of torchrun, the rank of this process, and the number of processes."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))


@cache
def _first_claim() -> bool:
    try:
        return _store()[0].add("failed", 1) == 1
    except (OSError, RuntimeError, ValueError):  # torchrun is gone
        return os.environ.get("RANK", "0") == "0"


@cache
def _follow() -> None:
    """Makes this process end when torchrun, its parent, has ended."""
    parent = os.getppid()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            socket.create_connection(
                (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60
            ).close()
        except ConnectionRefusedError:  # it is gone already, and torch would try for half an hour
            os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
