"""Hugging Face's data sets: from memory maps, folders and Parquet, and as streams whose order is a
function of the seed.
"""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sdekit_diffusion as sd
from sdekit_diffusion.data import Scale, _stored, from_datasets, load
from sdekit_diffusion.data._given import source_of
from sdekit_diffusion.data._stream import Stream

datasets = pytest.importorskip("datasets")
PICTURES = [Image.fromarray(np.full((6, 4, 3), i, np.uint8)) for i in range(60)]
FEATURES = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=["a", "b", "c"]),
    "caption": datasets.Value("string"),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is fetched, and nothing is kept."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def pictures(places=range(60)):
    """Image i is of level i, and of class i modulo 3."""
    columns = {
        "image": [PICTURES[i] for i in places],
        "label": [i % 3 for i in places],
        "caption": ["words"] * len(places),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(FEATURES))


def levels(x):
    return x[:, 0, 0, 0].tolist()


def take(source, n, size=8, **order):
    return list(
        itertools.chain.from_iterable(
            levels(x) for x in itertools.islice(source.batches(size, **order), n)
        )
    )


def of_folder(folder):
    for i, picture in enumerate(PICTURES):
        (folder / "train" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "train" / "abc"[i % 3] / f"{i:02}.png")


PLACES = {
    "save_to_disk": lambda place: pictures().save_to_disk(place),
    "splits": lambda place: datasets.DatasetDict(
        train=pictures(range(50)), test=pictures(range(50, 60))
    ).save_to_disk(place),
    "parquet": lambda place: pictures().to_parquet(place / "a.parquet"),
    "images": of_folder,
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("prefix", ["hf", "hf-stream"])
def test_what_is_on_disk(tmp_path, kind, prefix):
    """All samples with their labels, each in one of the sets; and the name opens it again."""
    place = tmp_path / "place"
    place.mkdir()
    PLACES[kind](place)
    dataset = load(f"{prefix}:{place}")
    assert (dataset.name, dataset.scale) == (f"{prefix}:{place}", Scale.quantised(256))
    n = 50 if kind == "splits" else 54
    train = dataset.train if prefix == "hf" else dataset.known
    assert (train.shape, dataset.test.shape) == ((n, 3, 6, 4), (60 - n, 3, 6, 4))
    assert sorted(levels(train) + levels(dataset.test)) == list(range(60))
    for part, labels in ((train, dataset.labels), (dataset.test, dataset.test_labels)):
        assert [level % 3 for level in levels(part)] == labels.tolist()
    if prefix == "hf-stream":
        assert dataset.size is None
        assert sorted(take(dataset.train, n, size=1)) == sorted(levels(train))
        assert dataset.reference(7)[0].shape == (7, 3, 6, 4)
    assert torch.equal(load(dataset.name).test, dataset.test)


def test_a_file_with_several_columns(tmp_path):
    numbers = np.random.default_rng(0).standard_normal((40, 3))
    columns = {"image": PICTURES[:40], "x": (100 + 20 * numbers).tolist(), "label": [-1] * 40}
    features = {
        "image": datasets.Image(),
        "x": datasets.List(datasets.Value("float64")),
        "label": datasets.Value("int64"),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
        tmp_path / "a.parquet"
    )
    assert load(f"hf:{tmp_path}/a.parquet#image").train.shape == (36, 3, 6, 4)
    for prefix in ("hf", "hf-stream"):
        found = load(f"{prefix}:{tmp_path}/a.parquet#x")
        assert (found.test.dtype, found.scale.dtype, found.labels) == (
            torch.float64,
            "float64",
            None,
        )
        assert found.scale.shift == pytest.approx([100, 100, 100], abs=15)
        assert bool(torch.isin(found.test, 100 + 20 * torch.from_numpy(numbers)).all())
    with pytest.raises(ValueError, match="image, x, label, of which 2 hold images or arrays"):
        load(f"hf:{tmp_path}/a.parquet")
    with pytest.raises(ValueError, match="has no column 'y'; it has image, x, label"):
        load(f"hf:{tmp_path}/a.parquet#y")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("dtype", "scale"), [("uint8", Scale.quantised(256)), ("float32", None)])
def test_arrays(streaming, dtype, scale):
    x = np.random.default_rng(0).integers(0, 256, (30, 6, 4, 3)).astype(dtype)
    features = datasets.Features({"x": datasets.Array3D((6, 4, 3), dtype)})
    given = datasets.Dataset.from_dict({"x": x}, features=features)
    found = from_datasets(given.to_iterable_dataset(3) if streaming else given)
    assert found.scale == (scale or found.scale)
    assert (found.scale.dtype, found.test.shape[1:]) == (
        dtype,
        (3, 6, 4) if dtype == "uint8" else (6, 4, 3),
    )
    first = found.test[0].movedim(0, -1) if dtype == "uint8" else found.test[0]
    assert any(np.array_equal(first, one) for one in x)


def test_large_sets_stay_in_their_memory_map(monkeypatch):
    whole = from_datasets(pictures())
    monkeypatch.setattr(_stored, "_MAX_BYTES_IN_MEMORY", 100)
    lazy = from_datasets(pictures())
    assert not isinstance(lazy.train, torch.Tensor)
    every = lazy.train[torch.arange(lazy.size)]
    assert sorted(levels(every)) == sorted(levels(whole.train))
    assert [level % 3 for level in levels(every)] == lazy.labels.tolist()
    split = from_datasets(
        {"train": pictures(range(50)), "validation": pictures(range(50, 60))}, label="label"
    )
    assert (split.size, sorted(levels(split.test))) == (50, list(range(50, 60)))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_formats_of_the_library_do_not_matter(kind):
    plain = from_datasets(pictures())
    found = from_datasets(pictures().with_format(kind))
    assert torch.equal(found.train, plain.train)
    assert torch.equal(found.labels, plain.labels)
    streamed = from_datasets(pictures().to_iterable_dataset(4).with_format(kind), buffer=7)
    assert take(streamed.train, 20) == take(stream(), 20)


def described(places=range(60)):
    """Image i of class i mod 3, with a smaller image of level i, a vector and two numbers."""
    places = list(places)
    columns = pictures(places).to_dict() | {
        "small": [Image.fromarray(np.full((2, 2), i, np.uint8)) for i in places],
        "embedding": [[i, -i, 0.5] for i in map(float, places)],
        "age": places,
        "mass": [i / 2 for i in places],
    }
    features = FEATURES | {
        "small": datasets.Image(),
        "embedding": datasets.List(datasets.Value("float32")),
        "age": datasets.Value("int64"),
        "mass": datasets.Value("float64"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


CONDITIONS = {"image": "small", "context": ["embedding", "age", "mass"], "class_labels": "age"}


def agree_with_level(x, conditions):
    """Whether the conditions are those of the images."""
    level = x[:, 0, 0, 0].float()
    expected = torch.stack([level, -level, 0.5 + 0 * level, level, level / 2], dim=1)
    images = ((level + 0.5) / 128 - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return (
        torch.equal(conditions["context"], expected)
        and torch.allclose(conditions["image"], images, rtol=0, atol=1e-6)
        and torch.equal(conditions["class_labels"], level.long())
    )


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", ["memory", "demand", "stream"])
def test_columns_as_conditions(monkeypatch, kind, split):
    """Several columns, each in the rows of its samples."""
    if kind == "demand":
        monkeypatch.setattr(_stored, "_MAX_BYTES_IN_MEMORY", 100)
    parts = {"train": described(range(50)), "test": described(range(50, 60))}
    parts = parts if split else {"train": described()}
    if kind == "stream":
        parts = {key: part.to_iterable_dataset(4) for key, part in parts.items()}
    data = from_datasets(parts, "image", conditions=CONDITIONS, buffer=7)
    assert agree_with_level(data.test, data.test_conditions)
    assert len(data.test_conditions["context"]) == len(data.test) > 5
    if kind == "stream":
        assert agree_with_level(data.known, data.conditions)
    if kind == "demand":
        assert not isinstance(data.conditions["image"], torch.Tensor)
    source = source_of(data, ["image", "context", "class_labels"])
    seen = []
    for x, conditions in itertools.islice(source.batches(8, seed=3), 7):
        assert set(conditions) == set(CONDITIONS)
        assert agree_with_level(x, conditions)
        seen += levels(x)
    assert len(set(seen)) > 45
    x, conditions = next(source.batches(8, seed=3, part=slice(3, 5)))
    assert agree_with_level(x, conditions)
    assert [int(level) for level in levels(x)] == seen[3:5]
    x, conditions = next(source.batches(2, part=slice(2, None, 3)))
    assert len(conditions["context"]) == len(x) == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_network_trains_with_labels_and_columns(streaming):
    table = described().remove_columns("image").rename_column("embedding", "x")
    table = table.to_iterable_dataset(2) if streaming else table
    data = from_datasets(table, "x", conditions={"context": "mass"})
    net = sd.nets.MLP(shape=(3,), width=8, classes=3, context=1)
    model = sd.ScoreModel(net, "vp", shape=(3,))
    recipe = sd.Recipe(steps=3, batch_size=8)
    assert len(sd.fit(model, data, recipe, progress=False)) == 3
    given = model.given(label=torch.tensor([0, 2]), context=torch.tensor([[1.0], [2.0]]))
    assert sd.sample(given, 2, steps=2, seed=0).shape == (2, 3)
    plain = sd.ScoreModel(sd.nets.MLP(shape=(3,), width=8), "vp", shape=(3,))
    with pytest.raises(ValueError, match="the condition 'context' and the network takes none"):
        sd.fit(plain, data, recipe, progress=False)
    sd.fit(plain, replace(data, conditions={}), recipe, progress=False)


def test_columns_of_a_place_on_disk(tmp_path):
    described().rename_column("label", "digit").to_parquet(tmp_path / "a.parquet")
    for prefix in ("hf", "hf-stream"):
        place = f"{prefix}:{tmp_path}/a.parquet#image"
        data = load(place, conditions={"label": "digit", "context": "mass"})
        assert data.test_labels.tolist() == [int(level) % 3 for level in levels(data.test)]
        assert data.test_conditions["context"].flatten().tolist() == [
            level / 2 for level in levels(data.test)
        ]
        assert data.test_conditions.keys() == {"context"}
        assert load(place, conditions=["mass", "age"]).test_conditions["age"].shape == (6, 1)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("conditions", "error", "said"),
    [
        (["mas"], ValueError, "has no column 'mas'; it has image, .*mass.*did you mean 'mass'"),
        (["caption"], ValueError, "'caption' of .*<U5; the condition 'caption' needs numbers"),
        (["gap"], ValueError, "'gap' of .* has values that are NaN"),
        (["odd"], ValueError, "a value of the column 'odd' of .* have one shape"),
        ("mass", TypeError, r"conditions are a list of names, such as \['mass'\]"),
        ({"context": 3}, TypeError, "conditions have the name of a column"),
        ({"context": [3]}, TypeError, "conditions have the name of a column, or several"),
        (["whole"], ValueError, "'whole' of .* has values that are NaN"),
    ],
)
def test_which_columns_are_no_conditions(streaming, conditions, error, said):
    table = described().add_column("gap", [None, *([1.0] * 59)])
    table = table.add_column("whole", [None, *range(59)])
    table = table.add_column("odd", [[1.0], *([[1.0, 2.0]] * 59)])
    with pytest.raises(error, match=said):
        from_datasets(
            table.to_iterable_dataset(2) if streaming else table, "image", conditions=conditions
        )


def stream(buffer=7, shards=4):
    return from_datasets(pictures().to_iterable_dataset(shards), buffer=buffer).train


def test_the_order_of_a_stream_depends_on_the_seed_alone():
    order = take(stream(), 20)
    assert take(stream(), 40, size=4) == order
    assert take(stream(), 20, seed=1) != order
    held = set(range(60)) - set(order[:54])
    assert len(held) == 6
    assert held < set(range(15))  # the beginning of the first shard
    assert sorted(order[54:108]) == sorted(order[:54])
    assert order[54:108] != order[:54]


def test_the_order_mixes_shards_and_what_is_near():
    """A buffer of 7 moves samples by less than 7; shards of 15 come in another order each epoch."""
    order = np.array(take(stream(), 54, size=1)), np.array(take(stream(buffer=1), 54, size=1))
    assert not np.array_equal(*order)
    assert all(sorted(order[0][i : i + 7]) == sorted(order[1][i : i + 7]) for i in range(0, 54, 7))
    firsts = {take(stream(buffer=1), 1, size=1, first=54 * epoch)[0] // 15 for epoch in range(6)}
    assert len(firsts) > 1


@functools.cache
def order_of_a_stream():
    """The first 400 samples."""
    return take(stream(), 400, size=1)


@pytest.mark.parametrize("first", [0, 5, 7, 53, 54, 55, 120, 300])
def test_a_stream_goes_on_where_it_was(first):
    """Also where the length of an epoch is not known yet, and with another size of batches."""
    order = order_of_a_stream()
    assert take(stream(), 6, size=3, first=first) == order[first : first + 18]
    known = stream()
    assert take(known, 60, size=1) == order[:60]
    assert take(known, 6, size=3, first=first) == order[first : first + 18]


@pytest.mark.parametrize("world", [2, 3])
def test_parts_of_batches_make_up_the_batch(world):
    whole = next(stream().batches(8, first=50))
    parts = [
        next(stream().batches(8, first=50, part=slice(rank, None, world))) for rank in range(world)
    ]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::world])
    assert next(stream().batches(2, part=slice(2, None, 3))).shape == (0, 3, 6, 4)


def test_encoded_images_are_not_decoded_to_skip_them(monkeypatch):
    source = stream()
    opened = []
    monkeypatch.setattr(
        "sdekit_diffusion.data._huggingface.pixels",
        lambda *_: opened.append(1) or np.zeros((6, 4), np.uint8),
    )
    next(source.batches(8, first=200, part=slice(0, None, 2)))
    assert len(opened) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_a_model_trains_on_what_does_not_fit(monkeypatch, streaming):
    monkeypatch.setattr(_stored, "_MAX_BYTES_IN_MEMORY", 100)
    source = from_datasets(pictures().to_iterable_dataset(4) if streaming else pictures())
    model = sd.ScoreModel(
        sd.nets.UNet(3, width=8), "vp", shape=(3, 6, 4), conditioning="log_snr", scale=source.scale
    )
    records = sd.fit(
        model,
        source.train,
        sd.Recipe(steps=3, batch_size=8),
        transform=source.scale.encode,
        progress=False,
    )
    assert len(records) == 3
    assert model.scale.decode(sd.sample(model, 2, steps=2, seed=0)).dtype == torch.uint8


def test_unknown_features():
    """A stream of a generator does not say what its columns are."""
    given = datasets.IterableDataset.from_generator(
        lambda: ({"picture": picture, "n": 1} for picture in PICTURES)
    )
    assert given.features is None
    found = from_datasets(given)
    assert (found.test.shape, found.labels) == ((6, 3, 6, 4), None)


def odd(**columns):
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: odd(text=["a", "b"]), "of which 0 hold images"),
        (
            lambda: odd(x=[[1.0], [2.0, 3.0], [4.0]]),
            r"sample 1 of the data set has shape \(2,\).* "
            r"but sample 0 .* \(1,\)",
        ),
        (lambda: odd(x=[[1.0], [float("nan")], [4.0]]), "NaN"),
        (lambda: odd(x=[[1.0]]), "needs 2 or more samples"),
        (lambda: odd(x=[]), "no column|of no samples"),
        (lambda: pictures().with_transform(dict), "has a transform.* apply it with map"),
        (lambda: {"test": odd(x=[[1.0], [2.0]])}, "has the splits test; one must be called train"),
        (lambda: odd(x=[[1.0]]).to_iterable_dataset(), "needs two or more"),
        (lambda: odd(x=[[[1] * 4] * 4] * 9).to_iterable_dataset(), "store images as uint8"),
        (lambda: pictures([*range(9), 0]).to_iterable_dataset().take(0), "of no samples"),
        (
            lambda: {"train": odd(x=[[1.0], [2.0]]), "test": odd(x=[[1.0, 2.0]])},
            r"shape "
            r"\(1,\).*shape "
            r"\(2,\)",
        ),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        from_datasets(given())


def test_damaged_places_are_refused(tmp_path):
    for content, name in (
        (b"", "a.parquet"),
        (b"PAR1 but no more", "a.parquet"),
        (b"words", "a.pkl"),
        (b"{", "state.json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ValueError,
            match=r"cannot be opened \(.*\); give a folder that "
            r"save_to_disk wrote",
        ):
            load(f"hf:{tmp_path / name}")
    pictures().save_to_disk(tmp_path / "saved")
    for file in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        content = (tmp_path / "saved" / file).read_bytes()
        (tmp_path / "saved" / file).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"hf:.*saved"):
            load(f"hf:{tmp_path / 'saved'}")
        (tmp_path / "saved" / file).write_bytes(content)
    for name in (tmp_path / "none", "./none", "~/none", "none.parquet"):
        with pytest.raises(ValueError, match=r"none.* cannot be opened \(it does not exist\)"):
            load(f"hf:{name}")


def test_damaged_images_are_refused():
    good = {"bytes": None, "path": None}
    for value in (good, {"bytes": b"not an image", "path": None}):
        given = datasets.Dataset.from_dict({"image": [value] * 9}).cast_column(
            "image", datasets.Image(decode=False)
        )
        with pytest.raises(ValueError, match="image"):
            from_datasets(given, "image")


def test_buffers_hold_something():
    with pytest.raises(ValueError, match="from 1 on; not 0"):
        Stream([list], torch.tensor, 0)
    with pytest.raises(ValueError, match="no examples"):
        next(Stream([list], torch.tensor, 5).batches(2))
