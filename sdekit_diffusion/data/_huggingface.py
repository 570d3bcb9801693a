"""Data sets of Hugging Face's library `datasets`: from a memory map by row number, or streamed."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit import did_you_mean
from sdekit_diffusion.data._array_files import reason
from sdekit_diffusion.data._batches import Rows, Shuffled
from sdekit_diffusion.data._columns import Conditions, Entries, columns_of, entries
from sdekit_diffusion.data._dataset import (
    HELD_OUT,
    Array,
    Dataset,
    require_alike,
    require_conditions_alike,
    samples,
)
from sdekit_diffusion.data._image_folder import pixels
from sdekit_diffusion.data._stored import Stored, fits, in_memory, of_stored, scale_of, stacked
from sdekit_diffusion.data._stream import Shard, Stream

_FORMATS = "PNG", "JPEG", "WEBP", "BMP"
_MAX_HELD_OUT = 1000  # samples of a stream that are held out, at most
_SHARD_SIZE = 1000  # samples per shard of a stored data set
# Other readers of the library have unpickled file contents.
_FILES = {".parquet": "parquet", ".arrow": "arrow"}
_SAVED = "dataset_info.json", "dataset_dict.json"  # written by save_to_disk


def from_datasets(
    dataset: Any,  # noqa: ANN401 - of a library that need not be there
    column: str | None = None,
    *,
    label: str | None = None,
    conditions: Conditions | None = None,
    buffer: int = 10_000,
    name: str = "the data set",
) -> Dataset:
    """A data set of Hugging Face's library `datasets`.

    A `datasets.Dataset` of up to 1 GiB is loaded into memory; a larger one is read from its memory
    map on demand. An `IterableDataset` is a stream, whose epochs permute the shards and shuffle
    samples within a buffer.

    Args:
        dataset: a dictionary of splits, of which "train" and, if there is one, "test" or
            "validation" are read; or a single split. Without a test set a tenth is held out, of a
            stream at most the first 1000 samples.
        column: the name of the column of samples: images, integers (levels of images), or floats;
            the only such column unless given.
        label: the name of the column of classes, integers; unless given "label", if that is such a
            column.
        conditions: further columns that the network receives, by the names of its arguments, such
            as {"context": "embedding", "image": "small"}; or a list, where these are the names of
            the columns. Several columns of numbers, {"context": ["age", "height"]}, are joined into
            one vector. Images of bytes are scaled to (-1, 1), and all other numbers are used as
            they are, as float32; a single number is a vector of length 1.
        buffer: how many consecutive samples of a stream are shuffled together.
        name: the name of the data set in errors and reports.

    Raises:
        ValueError: for a missing column, samples of different shapes, a transform, which is not
            applied here, or a dictionary without "train".
        ImportError: when the library is not installed.

    Example:
        >>> import datasets
        >>> rows = {"x": [[0.0, 1.0], [1.0, 0.0]] * 25, "label": [0, 1] * 25}
        >>> table = datasets.Dataset.from_dict(rows)
        >>> data = sd.data.from_datasets(table.with_format("torch"))
        >>> data.train.shape, data.test.shape
        (torch.Size([45, 2]), torch.Size([5, 2]))
        >>> table = table.add_column("mass", [1.5] * 50)
        >>> data = sd.data.from_datasets(table, "x", conditions={"context": "mass"})
        >>> net = sd.nets.MLP(shape=(2,), width=8, classes=2, context=1)
        >>> model = sd.ScoreModel(net, "vp", shape=(2,))
        >>> records = sd.fit(model, data, sd.Recipe(steps=2, batch_size=8), progress=False)
    """
    streams = _library().IterableDataset
    splits = _splits(dataset, name)
    first = next(iter(splits["train"]), {})
    columns = columns_of(conditions)
    used = [key for keys in columns.values() for key in keys]
    column = _column(first, used, name) if column is None else column
    label = "label" if label is None and isinstance(first.get("label"), int) else label
    for required in (column, label, *used):
        if required is not None and required not in first:
            raise ValueError(
                f"{name} has no column {required!r}; it has {', '.join(first)}"
                f"{did_you_mean(required, first)}"
            )
    test_split = next((splits[split] for split in HELD_OUT if split in splits), None)
    train = _Split(splits["train"], column, label, columns, name)
    test = None
    if test_split is not None:
        test = _Split(test_split, column, label, columns, f"the test set of {name}")
    if isinstance(splits["train"], streams):
        return _of_streams(train, test, buffer)
    if test is None:
        return of_stored(train.stored(), labels=train.labels(), conditions=train.conditions())
    return of_stored(
        train.stored(),
        test.stored(),
        train.labels(),
        test.labels(),
        train.conditions(),
        test.conditions(),
    )


def _splits(dataset: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    """The splits of a data set by name, without a format.

    Raises:
        ValueError: unless one is called train, and for a transform.
    """
    splits = dataset if isinstance(dataset, dict) else {"train": dataset}
    if "train" not in splits:
        raise ValueError(
            f"{name} has the splits {', '.join(map(str, splits))}; one must be called train"
        )
    streams = _library().IterableDataset
    stored = (split for split in splits.values() if not isinstance(split, streams))
    if any(split.format["type"] == "custom" for split in stored):
        raise ValueError(
            f"{name} has a transform, which is not applied here; apply it with map, and take it "
            "off with reset_format"
        )
    return {key: split.with_format(None) for key, split in splits.items()}


def load_datasets(
    location: str,
    *,
    streaming: bool,
    label: str | None = None,
    conditions: Conditions | None = None,
) -> Dataset:
    """The data set named after `hf:` or `hf-stream:`; its column of samples follows a `#`.

    A folder that `save_to_disk` wrote, a Parquet file, or what `load_dataset` takes: a folder of
    these or of images, or a name on the hub.

    Raises:
        ValueError: when it cannot be opened, and as `from_datasets`.
        ImportError: when the library is not installed.
    """
    library = _library()
    source, mark, column = location.partition("#")
    path = Path(source).expanduser()
    source = str(path.resolve()) if path.exists() else source
    name = f"{'hf-stream' if streaming else 'hf'}:{source}{mark}{column}"
    try:
        if not path.exists() and (source[0] in "/.~" or path.suffix in _FILES):
            raise FileNotFoundError("it does not exist")  # and must not be looked up on the hub
        if any((path / file).is_file() for file in _SAVED):
            dataset = library.load_from_disk(source)
            if streaming:
                splits = dataset if isinstance(dataset, dict) else {"train": dataset}
                dataset = {
                    key: split.to_iterable_dataset(max(1, len(split) // _SHARD_SIZE))
                    for key, split in splits.items()
                }
        elif path.is_file():
            dataset = library.load_dataset(
                _FILES[path.suffix], data_files=source, streaming=streaming
            )
        else:
            dataset = library.load_dataset(source, streaming=streaming)
    except Exception as error:  # the library, Arrow and the network raise many kinds
        raise ValueError(
            f"{name} cannot be opened ({reason(error)}); give a folder that save_to_disk wrote, a "
            ".parquet file, a folder of such files or of images, or a name on the hub"
        ) from error
    return from_datasets(dataset, column or None, label=label, conditions=conditions, name=name)


class _Column:
    """A column of images, which may be encoded, or of numbers.

    Args:
        features: of the data set, or an empty dictionary where they are unknown.
        key: the name of the column.
        name: what a value is, in errors.
        gaps: whether integers are read as float64, where a missing one is NaN.
    """

    def __init__(
        self, features: Mapping[str, Any], key: str, name: str, *, gaps: bool = False
    ) -> None:
        self.key = key
        self.name = name
        self.images = isinstance(features.get(key), _library().Image)
        own = None if self.images else _feature_dtype(features.get(key))
        self.integer = own if gaps and own is not None and np.dtype(own).kind in "iub" else None
        self.dtype = own if self.integer is None else "float64"

    def array(self, value: Any) -> Array:  # noqa: ANN401
        """One value as an array."""
        if isinstance(value, dict):  # an image that is still encoded
            return pixels(BytesIO(_image_bytes(value)), self.name, _FORMATS)
        return np.asarray(value, self.dtype)

    def values(self, dataset: Any, numbers: Sequence[int]) -> list[Array]:  # noqa: ANN401
        """The values of some rows of a data set."""
        dataset = dataset.select_columns([self.key])
        if self.dtype is not None:
            dataset = dataset.with_format("numpy", dtype=self.dtype)
        return [self.array(value) for value in dataset[list(numbers)][self.key]]


class _Split:
    """One split: the column of its samples, images still encoded, and of its conditions."""

    def __init__(
        self,
        dataset: Any,  # noqa: ANN401
        column: str,
        label: str | None,
        conditions: Mapping[str, Sequence[str]],
        name: str,
    ) -> None:
        features = dataset.features or {}
        used = [column, *([] if label is None else [label])]
        used += [key for keys in conditions.values() for key in keys]
        dataset = dataset.select_columns(list(dict.fromkeys(used)))
        self._column = _Column(features, column, f"an image of {name}")
        self._conditions = {
            condition: [
                _Column(features, key, f"the column {key!r} of {name}", gaps=True) for key in keys
            ]
            for condition, keys in conditions.items()
        }
        for one in (self._column, *itertools.chain.from_iterable(self._conditions.values())):
            if one.images:
                dataset = dataset.cast_column(one.key, _library().Image(decode=False))
        self._dataset = dataset
        self._label = label
        self.name = name

    def stored(self) -> Stored:
        """The samples, read by row number."""
        return Stored(
            len(self._dataset),
            functools.partial(self._column.values, self._dataset),
            lambda i: f"sample {i} of {self.name}",
            self.name,
        )

    def conditions(self) -> dict[str, Rows]:
        """The conditions of all samples, in memory or read by row number."""
        return {
            name: in_memory(Entries(len(self._dataset), functools.partial(self._entries, name)))
            for name in self._conditions
        }

    def conditions_of(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The conditions of examples of a stream."""
        return {name: read(examples) for name, read in self.readers().items()}

    def readers(self) -> dict[str, Callable[[Sequence[dict[str, Any]]], Tensor]]:
        """For each condition a function from examples of a stream to its entries."""
        return {name: functools.partial(self._streamed, name) for name in self._conditions}

    def _entries(self, name: str, numbers: Sequence[int]) -> Tensor:
        columns = self._conditions[name]
        return _joined(name, columns, [one.values(self._dataset, numbers) for one in columns])

    def _streamed(self, name: str, examples: Sequence[dict[str, Any]]) -> Tensor:
        columns = self._conditions[name]
        values = [[one.array(example[one.key]) for example in examples] for one in columns]
        return _joined(name, columns, values)

    def labels(self) -> Array | None:
        """The classes of all samples."""
        if self._label is None:
            return None
        return _classes(
            self._dataset.select_columns([self._label]).with_format("numpy")[:][self._label]
        )

    def labels_of(self, examples: Sequence[dict[str, Any]]) -> Tensor | None:
        """The classes of examples of a stream."""
        if self._label is None:
            return None
        classes = _classes(np.asarray([example[self._label] for example in examples]))
        return None if classes is None else torch.from_numpy(classes)

    def shards(self) -> list[Shard]:
        """The shards of a stream."""
        n = self._dataset.num_shards
        return [functools.partial(self._dataset.shard, n, i) for i in range(n)]

    def read(self, examples: Sequence[dict[str, Any]]) -> Tensor:
        """The samples of examples of a stream."""
        arrays = [self._column.array(example[self._column.key]) for example in examples]
        return torch.from_numpy(
            samples(stacked(arrays, lambda _: f"a sample of {self.name}"), self.name)
        )


def _joined(name: str, columns: Sequence[_Column], values: Sequence[Sequence[Array]]) -> Tensor:
    """The entries of a condition from the values of its columns."""
    arrays = [
        stacked(rows, lambda _, one=one: f"a value of {one.name}")
        for one, rows in zip(columns, values, strict=True)
    ]
    for i, one in enumerate(columns):
        if one.integer is not None and np.isfinite(arrays[i]).all():
            arrays[i] = arrays[i].astype(one.integer)
    return entries(name, arrays, " and ".join(one.name for one in columns))


def _of_streams(train: _Split, test: _Split | None, buffer: int) -> Dataset:
    shards = train.shards()
    first = list(itertools.islice(shards[0](), _MAX_HELD_OUT + 1))
    train_examples = list(
        itertools.islice(_chain_shards(shards), fits(train.read(first[:1]).nbytes) if first else 0)
    )
    if test is None:
        first_shard = shards[0]
        n = min(max(1, len(train_examples) // 10), len(first) - 1)
        shards[0] = lambda: itertools.islice(first_shard(), n, None)
        test_examples = train_examples[:n]
        train_examples = train_examples[n:]
    else:
        test_examples = list(itertools.islice(_chain_shards(test.shards()), _MAX_HELD_OUT))
    if not train_examples or not test_examples:
        raise ValueError(
            f"{train.name} has no samples to train on or none to hold out; its first shard needs "
            "two or more"
        )
    first_samples = train.read(train_examples)
    held_out = (test or train).read(test_examples)
    require_alike(first_samples, held_out, train.name)
    conditions = train.conditions_of(train_examples)
    test_conditions = (test or train).conditions_of(test_examples)
    require_conditions_alike(conditions, test_conditions, train.name)
    return Dataset(
        Stream(
            shards,
            train.read,
            buffer,
            f"the beginning of a stream in {len(shards)} shards: "
            f"{Shuffled(first_samples, conditions).fingerprint}",
            train.labels_of,
            train.readers(),
        ),
        held_out,
        scale_of(first_samples, train.name),
        train.name,
        train.labels_of(train_examples),
        (test or train).labels_of(test_examples),
        first_samples,
        conditions,
        test_conditions,
    )


def _chain_shards(shards: Sequence[Shard]) -> Iterator[Any]:
    return itertools.chain.from_iterable(shard() for shard in shards)


def _column(first: dict[str, Any], used: Collection[str], name: str) -> str:
    """The only column of images or numbers in an example that is not used as a condition.

    Raises:
        ValueError: when there is not exactly one.
    """
    columns = [key for key, value in first.items() if key not in used and _is_numeric(value)]
    if len(columns) != 1:
        raise ValueError(
            f"{name} has the columns {', '.join(first) or 'of no samples'}, of which "
            f"{len(columns)} hold images or arrays of numbers; name one, as column=... or after a "
            "# behind the name"
        )
    return columns[0]


def _is_numeric(value: Any) -> bool:  # noqa: ANN401
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return False
    return array.ndim > 0 and array.dtype.kind in "uif"


def _feature_dtype(feature: Any) -> str | None:  # noqa: ANN401
    """The dtype of the numbers in a feature of arrays or nested lists; None if it is unknown, or
    they are none.
    """
    while hasattr(feature, "feature"):
        feature = feature.feature
    dtype = getattr(feature, "dtype", None)
    try:
        return dtype if np.dtype(dtype).kind in "buif" else None
    except TypeError:  # texts and others that numpy does not have
        return None


def _classes(labels: Array) -> Array | None:
    """Labels, or None if some are missing, which -1 often marks."""
    return labels if labels.dtype.kind in "ui" and len(labels) and labels.min() >= 0 else None


def _image_bytes(image: dict[str, Any]) -> bytes:
    """The bytes of an encoded image; if the example does not contain them, from its file, which may
    be remote.
    """
    if image.get("bytes") is not None:
        return image["bytes"]
    if image.get("path") is None:
        return b""
    import fsspec

    source: Any = fsspec.open(image["path"], "rb")
    with source as file:
        return file.read()


def _library() -> Any:  # noqa: ANN401 - a module
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face's data sets need their library: pip install 'sdekit[datasets]'"
        ) from error
    return datasets
