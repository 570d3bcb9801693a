"""Data sets: contents, splits, dequantisation, every form of file, and every damaged file."""

import io
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sdekit_diffusion.data import Dataset, load, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3)).astype(np.uint8)
TOYS = [name for name in sources() if name != "digits"]


def rows(x):
    return {tuple(row) for row in x.flatten(1).tolist()}


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_digits():
    digits = load("digits")
    assert (digits.name, digits.levels, digits.low, digits.high) == ("digits", 17, -1, 1)
    assert (digits.train.shape, digits.test.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert digits.train.dtype == digits.test.dtype == torch.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 16)
    assert rows(digits.train).isdisjoint(rows(digits.test))
    assert torch.equal(load("digits", seed=1).train, digits.train)
    order = np.random.default_rng(0).permutation(1797)
    assert np.array_equal(digits.test[:, 0], load_digits().images[order[1297:]])
    # Digits are brighter in the middle than in their first column: rows and columns are where they should be.
    assert digits.train.double()[..., :, 3:5].mean() > 8 > 0.1 > digits.train.double()[..., :, 0].mean()


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'sdekit\[app\]'"):
        load("digits")
    with pytest.raises(ImportError, match=r"pip install 'sdekit\[app\]'"):
        load(tmp_path)


@pytest.mark.parametrize("name", TOYS)
def test_toys(name):
    toy = load(name)
    assert (toy.train.shape, toy.test.shape, toy.levels) == ((10_000, 2), (2_000, 2), None)
    assert toy.train.dtype == torch.float32
    everything = torch.cat([toy.train, toy.test])
    assert torch.allclose(everything.mean(0), torch.zeros(2), atol=1e-5)
    assert everything.std() == pytest.approx(1, abs=1e-3)
    assert toy.low == toy.train.min()
    assert toy.high == toy.train.max()
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
    cells = ((board - board.amin(0)) / (board.amax(0) - board.amin(0)) * 4).floor().clamp(0, 3).long()
    counts = torch.zeros(4, 4).index_put_((cells[:, 0], cells[:, 1]), torch.ones(10_000), accumulate=True)
    parity = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    assert counts[parity == 0].min() > 1_000
    assert counts[parity == 1].max() < 50
    spiral = load("spiral").train
    assert (spiral.norm(dim=1) < 0.3).sum() > 100  # two arms that meet in the middle: each is the other's image
    assert rows_are_close(spiral, -spiral)
    assert not rows_are_close(load("moons").train, -load("moons").train[:, [1, 0]])


def rows_are_close(a, b):
    return torch.cdist(a[:2000], b).amin(dim=1).median() < 0.03 and torch.cdist(b[:2000], a).amin(dim=1).quantile(0.99) < 0.2


@pytest.mark.parametrize("levels", [2, 17, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantise_undoes_dequantised(levels, dtype):
    images = torch.arange(levels).view(levels, 1, 1, 1)
    dataset = Dataset(images, images, levels, -1.0, 1.0, "ramp")
    for noise in (1e-3, 0.3, 1 - 1e-3):
        x = dataset.dequantised(images, torch.full(images.shape, noise, dtype=dtype))
        assert x.dtype == dtype
        assert torch.equal(dataset.quantise(x).long(), images)
    assert dataset.quantise(x).dtype == (torch.uint8 if levels <= 256 else torch.int64)
    assert dataset.quantise(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, levels - 1, levels - 1]


def test_dequantised_values():
    dataset = load("digits")
    x = torch.tensor([0, 8, 16], dtype=torch.uint8)
    assert torch.allclose(dataset.dequantised(x, torch.tensor([0.0, 0.5, 0.75])), torch.tensor([-1.0, 0.0, 2 * 16.75 / 17 - 1]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        dataset.quantise(torch.tensor([0.0, torch.nan]))


def test_continuous_data_have_no_levels():
    toy = load("moons")
    with pytest.raises(ValueError, match="moons holds continuous data"):
        toy.dequantised(toy.train, torch.rand(toy.train.shape))
    with pytest.raises(ValueError, match="moons holds continuous data"):
        toy.quantise(toy.train)


@pytest.mark.parametrize(
    ("array", "shape"),
    [(IMAGES[..., 0], (1, 6, 4)), (IMAGES, (3, 6, 4)), (IMAGES[..., :1], (1, 6, 4)), (IMAGES.transpose(0, 3, 1, 2), (3, 6, 4))],
)
def test_integer_arrays_are_images(tmp_path, array, shape):
    np.save(tmp_path / "a.npy", array)
    dataset = load(tmp_path / "a.npy")
    assert (dataset.levels, dataset.low, dataset.high) == (256, -1, 1)
    assert (dataset.train.shape, dataset.test.shape) == ((18, *shape), (2, *shape))
    expected = torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))[:, : shape[0]]
    assert rows(torch.cat([dataset.train, dataset.test])) == rows(expected)
    assert torch.equal(load(str(tmp_path / "a.npy"), seed=5).test, dataset.test)


def test_levels_of_other_integers_are_one_more_than_the_largest_of_both_sets(tmp_path):
    path = saved(tmp_path / "a.npz", train=np.full((3, 2, 2), 4), test=np.full((2, 2, 2), 300))
    dataset = load(path)
    assert dataset.levels == 301
    assert (dataset.train.dtype, int(dataset.train.max()), int(dataset.test.min())) == (torch.int64, 4, 300)


def test_float_arrays_are_continuous(tmp_path):
    values = np.linspace(-3, 5, 40)
    for shape in ((40,), (20, 2), (5, 2, 4)):
        path = tmp_path / "a.npy"
        np.save(path, values.reshape(shape))
        dataset = load(path)
        assert dataset.levels is None
        assert (dataset.train.dtype, dataset.train.shape[1:]) == (torch.float32, shape[1:])
        together = torch.cat([dataset.train, dataset.test]).flatten().sort().values
        assert torch.allclose(together, torch.from_numpy(values).float())


def test_the_arrays_of_an_npz(tmp_path):
    x, other = np.zeros((30, 2)), np.ones((7, 2))
    assert load(saved(tmp_path / "a.npz", train=x, test=other, more=other)).test.shape == (7, 2)
    assert load(saved(tmp_path / "b.npz", x=x, more=other)).test.shape == (3, 2)
    assert load(saved(tmp_path / "c.npz", anything=other)).train.shape == (6, 2)
    assert load(saved(tmp_path / "d.npz", anything=other[:2])).train.shape == (1, 2)
    with pytest.raises(ValueError, match="holds a, b; it needs an array called train or x"):
        load(saved(tmp_path / "e.npz", a=x, b=x))


@pytest.mark.parametrize(("suffix", "grey"), [("png", False), ("png", True), ("jpg", True), ("JPEG", False)])
def test_folders_of_images(tmp_path, suffix, grey):
    # Flat images survive jpeg almost unchanged.
    for i in range(12):
        pixels = np.full((6, 4) if grey else (6, 4, 3), 20 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.{suffix}")
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = load(tmp_path)
    assert (dataset.levels, dataset.train.shape, dataset.test.shape[0]) == (256, (11, 1 if grey else 3, 6, 4), 1)
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
    with pytest.raises(ValueError, match=r"type float32.*type int64"):
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
        ValueError, match=f"{name} cannot be read as a .* file of numbers .*; save it again with np.save"
    ) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(ValueError, match=f"{name} is not a sound .* image .*; replace or remove it") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (Image.new("RGB", (5, 6)), r"b.png has shape \(6, 5, 3\) but a.png has \(6, 4, 3\)"),
        (Image.new("L", (4, 6)), r"b.png has shape \(6, 4\) but a.png has \(6, 4, 3\)"),
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
    with pytest.raises(ValueError, match="'mnist' does not exist; choose one of digits, moons"):
        load("mnist")
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
    """A header that describes fewer samples, where numpy would read those alone; a pixel that pillow would show otherwise."""
    for name, write in (("a.npy", np.save), ("a.npz", np.savez)):
        path = tmp_path / name
        write(path, np.zeros((5000, 3, 4), dtype=np.uint8))
        path.write_bytes(path.read_bytes().replace(b"(5000,", b"(1000,"))
        with pytest.raises(ValueError, match=r"it goes on after its array|the checksum of arr_0\.npy in it is wrong"):
            load(path)
    Image.fromarray(IMAGES[0]).save(tmp_path / "0.png")
    content = bytearray((tmp_path / "0.png").read_bytes())
    content[content.index(b"IEND") - 9] ^= 1  # the last byte of the pixels' own checksum
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.png is not a sound .* image"):
        load(tmp_path)
