"""Which of several processes this is. torchrun starts them and says so in the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def world() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def wait() -> None:
    """Returns when all processes have come here."""
    if world() > 1:
        distributed.barrier()


def agreed(number: int, device: torch.device) -> bool:
    """Whether all processes have come here with the same number, which is known when they have."""
    ends = torch.tensor([number, -number], device=device)
    if world() > 1:
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    return int(ends[0]) == -int(ends[1])


@contextmanager
def joined(device: str) -> Iterator[str]:
    """For the time of a block the processes that torchrun started work together; yields the device of this one.

    With gloo on the CPU; with NCCL on GPUs, one for each process where no number is given. Does nothing without torchrun, or
    within such a block.

    Raises:
        ValueError: where torchrun started several processes and this torch cannot join them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world() > 1:
        yield device
        return
    if not distributed.is_available():
        raise ValueError("this build of torch has no torch.distributed; run one process, without torchrun")
    cuda = torch.device(device).type == "cuda"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()
