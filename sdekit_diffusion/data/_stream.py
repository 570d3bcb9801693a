"""Samples that can only be read in sequence."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sdekit_diffusion.data._batches import AbstractSource

Shard = Callable[[], Iterable[Any]]


class Stream(AbstractSource):
    """Examples of shards, each of which is read from its beginning: data sets may be larger than
    the disk.

    Each epoch visits the shards in a new order and shuffles every `buffer` consecutive examples, by
    (seed, epoch) alone. To continue at number `first` is to skip the examples before it: those
    of its epoch if the length of an epoch is known, otherwise all.

    Args:
        shards: the examples of each, from its beginning whenever it is called.
        read: the samples `(batch, *shape)` of examples.
        buffer: how many examples are shuffled together; they are held in memory as read.
        fingerprint: identifies the samples.

    Raises:
        ValueError: for an empty buffer.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        read: Callable[[Sequence[Any]], Tensor],
        buffer: int,
        fingerprint: str = "",
    ) -> None:
        if buffer < 1:
            raise ValueError(f"buffer is a number of samples, from 1 on; not {buffer}")
        self._shards = shards
        self._read = read
        self._buffer = buffer
        self.fingerprint = fingerprint
        self._size = 0  # of an epoch; 0 until it is known

    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor]:
        examples = self._ordered(seed % 2**64, first)
        while True:
            batch = list(itertools.islice(examples, size))
            yield self._read(batch[part]) if batch[part] else self._read(batch[:1])[:0]

    def _ordered(self, seed: int, first: int) -> Iterator[Any]:
        """Epoch after epoch, from number `first` on."""
        for epoch in itertools.count():
            if 0 < self._size <= first:
                first -= self._size
                continue
            order = np.random.default_rng([seed, epoch]).permutation(len(self._shards))
            examples = itertools.chain.from_iterable(self._shards[shard]() for shard in order)
            size = 0
            for number in itertools.count():
                block = list(itertools.islice(examples, self._buffer))
                positions = np.random.default_rng([seed, epoch, number]).permutation(len(block))
                yield from (block[position] for position in positions[first:])
                size = size + len(block)
                first = max(0, first - len(block))
                if len(block) < self._buffer:
                    break
            if not size:
                raise ValueError(
                    "the stream has no examples when it is read again; give one that can be"
                )
            self._size = size
