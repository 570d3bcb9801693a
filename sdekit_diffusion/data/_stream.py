"""Samples that can only be read in sequence."""

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from sdekit_diffusion.data._batches import AbstractSource, Batch

Shard = Callable[[], Iterable[Any]]


class Stream(AbstractSource):
    """The examples of shards, each of which is read in sequence: the data set may be larger than
    the disk.

    Each epoch visits the shards in a new order and shuffles every `buffer` consecutive examples;
    both orders depend on (seed, epoch) alone. To resume, earlier examples are read and skipped:
    those of the current epoch if the length of an epoch is known, otherwise all.

    Args:
        shards: functions without arguments, each of which returns the examples of a shard, from its
            beginning.
        read: converts a list of examples to samples, `(batch, *shape)`.
        buffer: how many examples are shuffled together; they are held in memory as read.
        fingerprint: identifies the samples.
        label: converts a list of examples to their classes, `(batch,)`, or None where they have
            none.
        conditions: each converts a list of examples to a condition, `(batch, ...)`, by the name of
            the network's argument.

    Raises:
        ValueError: for an empty buffer.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        read: Callable[[Sequence[Any]], Tensor],
        buffer: int,
        fingerprint: str = "",
        label: Callable[[Sequence[Any]], Tensor | None] = lambda _: None,
        conditions: Mapping[str, Callable[[Sequence[Any]], Tensor]] | None = None,
    ) -> None:
        if buffer < 1:
            raise ValueError(f"buffer is a number of samples, from 1 on; not {buffer}")
        self._shards = shards
        self._read = read
        self._buffer = buffer
        self.fingerprint = fingerprint
        self._label = label
        self._conditions = dict(conditions or {})
        self._label_name: str | None = None
        self._size = 0  # of an epoch; 0 until it is known

    def labelled(self, name: str | None, conditions: Collection[str] = ()) -> Self:
        """The same stream with the classes as a condition of that name, without them for None; and
        with these of its other conditions.
        """
        stream = copy.copy(self)
        stream._label_name = name
        stream._conditions = {key: self._conditions[key] for key in conditions}
        return stream

    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor | Batch]:
        examples = self._ordered(seed % 2**64, first)
        while True:
            batch = list(itertools.islice(examples, size))
            count = len(batch[part])
            chosen = batch[part] or batch[:1]
            x = self._read(chosen)[:count]
            values = {} if self._label_name is None else self._labels(chosen, count)
            for name, condition in self._conditions.items():
                values[name] = condition(chosen)[:count]
            yield Batch(x, values) if values else x

    def _labels(self, examples: Sequence[Any], count: int) -> dict[str, Tensor]:
        labels = self._label(examples)
        assert self._label_name is not None
        if labels is None:
            raise ValueError(
                "some examples of the stream have no class; remove them, or train a network "
                "without labels"
            )
        return {self._label_name: labels[:count]}

    def _ordered(self, seed: int, first: int) -> Iterator[Any]:
        """The examples of all epochs, without the first `first`."""
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
