"""Data sets of Hugging Face's library `datasets`: from a memory map by row number, or streamed."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit_diffusion.data._array_files import reason
from sdekit_diffusion.data._batches import Shuffled
from sdekit_diffusion.data._dataset import HELD_OUT, Array, Dataset, require_alike, samples
from sdekit_diffusion.data._image_folder import pixels
from sdekit_diffusion.data._stored import Stored, fits, of_stored, scale_of, stacked
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
        buffer: how many consecutive samples of a stream are shuffled together.
        name: the name of the data set in errors and reports.

    Raises:
        ValueError: for a missing column, samples of different shapes, a transform, which is not
            applied here, or a dictionary without "train".
        ImportError: when the library is not installed.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"x": [[0.0, 1.0]] * 50, "label": [0, 1] * 25})
        >>> data = sd.data.from_datasets(table.with_format("torch"))
        >>> data.train.shape, data.test.shape
        (torch.Size([45, 2]), torch.Size([5, 2]))
    """
    streams = _library().IterableDataset
    splits = dataset if isinstance(dataset, dict) else {"train": dataset}
    if "train" not in splits:
        raise ValueError(
            f"{name} has the splits {', '.join(map(str, splits))}; one must be called train"
        )
    if any(
        split.format["type"] == "custom"
        for split in splits.values()
        if not isinstance(split, streams)
    ):
        raise ValueError(
            f"{name} has a transform, which is not applied here; apply it with map, and take it "
            "off with reset_format"
        )
    splits = {key: split.with_format(None) for key, split in splits.items()}
    first = next(iter(splits["train"]), {})
    column = _column(first, name) if column is None else column
    label = "label" if label is None and isinstance(first.get("label"), int) else label
    for required in (column, label):
        if required is not None and required not in first:
            raise ValueError(f"{name} has no column {required!r}; it has {', '.join(first)}")
    test_split = next((splits[split] for split in HELD_OUT if split in splits), None)
    train = _Split(splits["train"], column, label, name)
    test = None
    if test_split is not None:
        test = _Split(test_split, column, label, f"the test set of {name}")
    if isinstance(splits["train"], streams):
        return _of_streams(train, test, buffer)
    if test is None:
        return of_stored(train.stored(), labels=train.labels())
    return of_stored(train.stored(), test.stored(), train.labels(), test.labels())


def load_datasets(location: str, *, streaming: bool) -> Dataset:
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
    return from_datasets(dataset, column or None, name=name)


class _Split:
    """One split: the column of its samples, images still encoded, and of its labels."""

    def __init__(self, dataset: Any, column: str, label: str | None, name: str) -> None:  # noqa: ANN401
        features = dataset.features or {}
        images = isinstance(features.get(column), _library().Image)
        dataset = dataset.select_columns([column, *([] if label is None else [label])])
        self._dataset = (
            dataset.cast_column(column, _library().Image(decode=False)) if images else dataset
        )
        self._feature_dtype = None if images else _feature_dtype(features.get(column))
        self._column = column
        self._label = label
        self.name = name

    def stored(self) -> Stored:
        """The samples, read by row number."""
        dataset = self._dataset.select_columns([self._column])
        if self._feature_dtype is not None:
            dataset = dataset.with_format("numpy", dtype=self._feature_dtype)

        def read(numbers: Sequence[int]) -> list[Array]:
            return [self._array(value) for value in dataset[list(numbers)][self._column]]

        return Stored(len(dataset), read, lambda i: f"sample {i} of {self.name}", self.name)

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
        arrays = [self._array(example[self._column]) for example in examples]
        return torch.from_numpy(
            samples(stacked(arrays, lambda _: f"a sample of {self.name}"), self.name)
        )

    def _array(self, value: Any) -> Array:  # noqa: ANN401
        if isinstance(value, dict):  # an image that is still encoded
            return pixels(BytesIO(_image_bytes(value)), f"an image of {self.name}", _FORMATS)
        return np.asarray(value, self._feature_dtype)


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
    return Dataset(
        Stream(
            shards,
            train.read,
            buffer,
            f"the beginning of a stream in {len(shards)} shards: "
            f"{Shuffled(first_samples).fingerprint}",
            train.labels_of,
        ),
        held_out,
        scale_of(first_samples, train.name),
        train.name,
        train.labels_of(train_examples),
        (test or train).labels_of(test_examples),
        first_samples,
    )


def _chain_shards(shards: Sequence[Shard]) -> Iterator[Any]:
    return itertools.chain.from_iterable(shard() for shard in shards)


def _column(first: dict[str, Any], name: str) -> str:
    """The only column of images or numbers in an example.

    Raises:
        ValueError: when there is not exactly one.
    """
    columns = [key for key, value in first.items() if _is_numeric(value)]
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
    """The dtype of the numbers in a feature of arrays or nested lists; None if it is unknown."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return getattr(feature, "dtype", None)


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
