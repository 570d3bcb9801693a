"""Sources that read torch's data sets and loaders."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)
from torch.utils.data import Dataset as TorchDataset

from sdekit_diffusion.data._batches import AbstractSource, Batch, require_finite, shuffled_numbers
from sdekit_diffusion.data._hashed import hashed

_FORWARDED = (
    "num_workers",
    "collate_fn",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
)


class Loaded(AbstractSource):
    """The items of a `torch.utils.data.Dataset`, or of a `DataLoader`, whose workers and
    `collate_fn` are used.

    A data set with a length is read in the order of `Shuffled`, by (seed, epoch); the batch size is
    that of the training run. An iterable data set, and a loader with a sampler or batch sampler of
    its own, keep their order: a run that resumes reads it from the beginning, and gives the result
    of a run without interruption only if the order is the same each time. Random transforms of
    items are reproducible if they use torch's generators in this process, which are seeded by the
    recipe's seed and the number of the first sample of each batch, or of the process's part of it.

    Arguments:
        loader: the loader or the data set.
        named: a function from what the loader yields to samples and conditions by name.

    Attributes:
        length: the number of items; 0 if the loader determines the order.
    """

    def __init__(
        self,
        loader: DataLoader[Any] | TorchDataset[Any],
        named: Callable[[Any], tuple[Any, Mapping[str, Any]]],
    ) -> None:
        self._loader = loader if isinstance(loader, DataLoader) else DataLoader(loader)
        self._named = named
        self.length = 0 if self._own_order() else len(cast(Sized, self._loader.dataset))
        first = next(self.batches(1))
        size = f"{self.length} items" if self.length else "a stream"
        parts = {"x": first.x, **first.conditions}
        shapes = [f"{name} {v.dtype} {tuple(v.shape[1:])}" for name, v in sorted(parts.items())]
        self.fingerprint = f"{size} of a data set of torch: {', '.join(shapes)}"

    def _own_order(self) -> bool:
        """Whether the loader determines the order."""
        if isinstance(self._loader.dataset, IterableDataset):
            return True
        # With a batch sampler of its own the loader's sampler is not used.
        batches = self._loader.batch_sampler
        if batches is not None and type(batches) is not BatchSampler:
            return True
        order: Any = self._loader.sampler if batches is None else batches.sampler
        of_torch = type(order) in (SequentialSampler, RandomSampler)
        if not of_torch or order.data_source is not self._loader.dataset:
            return True
        return getattr(order, "replacement", False) or len(order) != len(order.data_source)

    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Batch]:
        share = range(size)[part]
        # In a loader's own order each process reads whole batches, with the same draws.
        ahead = share.start if self.length else 0
        generator = torch.Generator().manual_seed(hashed("workers", seed, first + ahead))
        batches = (
            self._shuffled(size, seed, first, part, generator)
            if self.length
            else self._in_turn(size, first, part)
        )
        for number in itertools.count(first, size):
            with torch.random.fork_rng([]):
                torch.manual_seed(hashed("items", seed, number + ahead))
                batch = next(batches)
            count = len(share)
            if len(batch.x) != (count or 1):
                raise ValueError(
                    f"the loader made {len(batch.x)} samples of {count or 1} items: its collate_fn "
                    "must return one for each item; make those that are more items of the data "
                    "set, and drop none"
                )
            yield Batch(batch.x[:count], {k: v[:count] for k, v in batch.conditions.items()})

    def _shuffled(
        self, size: int, seed: int, first: int, part: slice, generator: torch.Generator
    ) -> Iterator[Batch]:
        """Batches in the order of (seed, epoch); for an empty part one sample is read, for its
        shape.
        """
        order = shuffled_numbers(self.length, size, seed=seed, first=first, part=part)
        numbers: Any = (rows.tolist() or [0] for rows in order)
        options = {name: getattr(self._loader, name) for name in _FORWARDED}
        if self._loader.batch_size is None and self._loader.batch_sampler is None:
            options["collate_fn"] = default_collate  # the loader's own takes single items
        loader = DataLoader(
            self._loader.dataset, batch_sampler=numbers, generator=generator, **options
        )
        return map(self._batch, loader)

    def _in_turn(self, size: int, first: int, part: slice) -> Iterator[Batch]:
        """Batches in the order of the loader."""
        rows = itertools.islice(self._rows(), first, None)
        while True:
            batch = list(itertools.islice(rows, size))
            yield _joined(batch[part] or batch[:1])

    def _rows(self) -> Iterator[Batch]:
        """The samples one by one, epoch after epoch."""
        while True:
            empty = True
            for given in self._loader:
                batch = self._batch(given)
                empty = False
                yield from batch.split(len(batch.x))
            if empty:
                raise ValueError("the loader has no samples when it is read; give one that has")

    def _batch(self, given: Any) -> Batch:  # noqa: ANN401 - what a loader yields
        x, conditions = self._named(given)
        batch = Batch.of(
            (torch.as_tensor(x), {k: torch.as_tensor(v) for k, v in conditions.items()})
        )
        require_finite(batch.x, range(len(batch.x)))
        for name, values in batch.conditions.items():
            require_finite(values, range(len(values)), name)
        return batch


def _joined(batches: Sequence[Batch]) -> Batch:
    """Batches as one."""
    return Batch(
        torch.cat([batch.x for batch in batches]),
        {
            name: torch.cat([batch.conditions[name] for batch in batches])
            for name in batches[0].conditions
        },
    )
