"""Samples and likelihoods kept part by part: the same from any number of processes, after kills,
faults and damage.
"""

import contextlib
import errno
import importlib
import multiprocessing
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

import sdekit_diffusion as sd
from sdekit_diffusion import nets
from sdekit_diffusion.__main__ import main
from sdekit_diffusion._app import held_out, trained
from sdekit_diffusion._app.options import Estimate, Loading
from sdekit_diffusion._storage import atomic
from sdekit_diffusion._storage.shards import digest

SAMPLE = ("--n", "23", "--batch-size", "4", "--steps", "6", "--seed", "5")
NAMES = [f"{i:09d}-{min(4, 23 - i)}.npz" for i in range(0, 23, 4)]


def saved(folder, net, name, **options):
    torch.manual_seed(0)
    model = sd.ScoreModel(net(), "subvp", "velocity", conditioning="log_snr", **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sd.save(model, folder, {"data": {"name": name}})


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    net = lambda: nets.MLP(shape=(2,), width=16, depth=1)  # noqa: E731
    return saved(tmp_path_factory.mktemp("points"), net, "moons", shape=(2,))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    net = lambda: nets.UNet(channels=1, width=8, multipliers=(1,), attention=(False,))  # noqa: E731
    return saved(
        tmp_path_factory.mktemp("images"),
        net,
        "digits",
        shape=(1, 8, 8),
        scale=sd.data.Scale.quantised(17),
    )


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_where_it_is_asked_for(progress, tmp_path, capsys):
    shards = sd.Shards(tmp_path / "numbers", n=4, batch_size=2)
    shards.fill(lambda first, count: {"x": torch.zeros(count)}, progress=progress)
    assert bool(capsys.readouterr().err) == progress


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_what_is_missing(tmp_path, monkeypatch, rank):
    """Each of two takes every second part of those that are missing."""
    work = lambda first, count: {"x": torch.arange(first, first + count)}  # noqa: E731
    parts = sd.Shards(tmp_path, n=24, batch_size=4)
    parts.fill(work)
    for path in sorted(tmp_path.iterdir())[2:]:
        path.unlink()
    computed = []
    monkeypatch.setattr("sdekit_diffusion._storage.shards.rank", lambda: rank)
    monkeypatch.setattr("sdekit_diffusion._storage.shards.world", lambda: 2)
    parts.fill(lambda first, count: computed.append(first) or work(first, count))
    assert computed == [8 + 4 * rank, 16 + 4 * rank]


@pytest.fixture(scope="module")
def expected(points):
    """What the library draws, in memory."""
    return sd.sample(sd.load(points), 23, steps=6, seed=5, batch_size=4).numpy()


def redirect(said):
    """What this process writes on stdout and stderr goes into two files."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(f"{said}.{stream.fileno()}", os.O_CREAT | os.O_WRONLY), stream.fileno())


def one_of(number, total, port, what, argument, said):
    """One process as torchrun starts it."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(total),
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    redirect(said)
    torch.set_num_threads(1)
    sys.exit(what(argument))


def filled_twice(folder):
    """As from a program of a user's, that did not join the processes itself."""
    for _ in range(2):
        shards = sd.Shards(f"{folder}/shards", 10, 5)  # fewer parts than processes
        shards.fill(
            lambda first, count: time.sleep(0.2) or {"number": torch.arange(first, first + count)}
        )
    Path(folder, f"seen{os.environ['RANK']}").write_text(
        str([part["number"].tolist() for part in shards])
    )


@contextlib.contextmanager
def started(context, total, argument, folder, what=main):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    argument = [str(part) for part in argument] if what is main else argument
    said = str(folder / "said")
    processes = [
        context.Process(target=one_of, args=(i, total, store.port, what, argument, f"{said}{i}"))
        for i in range(total)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def together(context, total, argument, folder, what=main):
    """The exit codes of `total` processes, and what all wrote on stdout and stderr."""
    with started(context, total, argument, folder, what) as processes:
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
    return codes, *(
        "".join((folder / f"said{i}.{n}").read_text() for i in range(total)) for n in (1, 2)
    )


def counted(shards):
    return len(list(shards.glob("*.npz")))


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_process_draws_what_the_library_draws(points, expected, tmp_path, capsys):
    assert main(["sample", str(points), "--out", str(tmp_path / "x.npz"), *SAMPLE]) == 0
    out = f"23 samples in {tmp_path / 'x.npz'}, of shape (23, 2); seed 5, the first is number 0\n"
    assert capsys.readouterr().out == out
    assert np.array_equal(np.load(tmp_path / "x.npz")["samples"], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz"]


@pytest.mark.filterwarnings("ignore:the samples of 1 of 1 observations are not reliable")
@pytest.mark.filterwarnings("ignore:3 steps are few for AdamsMoulton")
def test_several_processes_restore_the_same(images, context, tmp_path):
    """By one, by two, and by three, which do not have as many each; and when all are killed on the
    way, and another number goes on.
    """
    few = ("--n", 4, "--samples", 8, "--particles", 8, "--steps", 3, "--noise", "0.5")
    argv = ["restore", images, "--mask", "bottom", *few]
    assert main([*map(str, argv), "--out", str(tmp_path / "1.npz")]) == 0
    alone = np.load(tmp_path / "1.npz")
    assert alone["samples"].shape == (4, 8, 1, 8, 8)
    killed = tmp_path / "3.npz"
    shards = tmp_path / "3.npz.shards"
    with started(context, 2, [*argv, "--out", killed], tmp_path) as processes:
        until(lambda: counted(shards) >= 1)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
    assert 1 <= counted(shards) < 4
    for total in (2, 3):
        out = tmp_path / f"{total}.npz"
        codes, said, _ = together(context, total, [*argv, "--out", out], tmp_path)
        assert codes == [0] * total
        assert said.count("pixels of 4 held-out images") == 1
        found = np.load(out)
        for name in ("samples", "log_weights", "observed"):
            assert np.array_equal(found[name], alone[name])


@pytest.mark.parametrize("total", [2, 3])
def test_several_processes_draw_the_same(points, expected, context, total, tmp_path):
    codes, said, _ = together(
        context, total, ["sample", points, "--out", tmp_path / "x.npy", *SAMPLE], tmp_path
    )
    assert codes == [0] * total
    assert said.count("23 samples in") == 1
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
    assert not (tmp_path / "x.npy.shards").exists()


def test_processes_share_the_work_of_a_program(context, tmp_path):
    codes, _, _ = together(context, 3, str(tmp_path), tmp_path, filled_twice)
    assert codes == [0] * 3
    seen = {path.read_text() for path in tmp_path.glob("seen*")}
    assert seen == {"[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]"}


def test_kills_lose_and_alter_nothing(points, context, tmp_path):
    """Three kills of all processes at random moments, with other numbers of processes each time."""
    argv = [
        "sample",
        points,
        "--n",
        140,
        "--batch-size",
        2,
        "--steps",
        30,
        "--out",
        tmp_path / "x.npy",
    ]
    shards = tmp_path / "x.npy.shards"
    rng = np.random.default_rng(0)
    known = {}
    for total in (2, 3, 2):
        wanted = len(known) + rng.integers(1, 8)
        with started(context, total, argv, tmp_path) as processes:
            until(lambda wanted=wanted: counted(shards) >= wanted)
            time.sleep(0.02 * rng.random())
            for i in rng.permutation(total):
                os.kill(processes[i].pid, signal.SIGKILL)
        now = {path.name: (path.stat().st_ino, path.read_bytes()) for path in shards.glob("*.npz")}
        assert known.items() <= now.items()  # not made again
        known = now
    assert 3 <= len(known) < 70
    assert main([str(part) for part in argv]) == 0
    assert np.array_equal(
        np.load(tmp_path / "x.npy"),
        sd.sample(sd.load(points), 140, steps=30, seed=0, batch_size=2).numpy(),
    )
    assert not shards.exists()


def torchrun(argv, said):
    """The program of that name; what it and its processes write goes into two files."""
    os.environ |= {"PYTHONPATH": str(Path(sd.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    redirect(said)
    importlib.import_module("torch.distributed.run").main(argv)


def test_torchrun(images, context, tmp_path):
    """Images into a folder, by two processes and by one."""
    argv = ("sample", images, "--n", 7, "--first", 3, "--batch-size", 2, "--steps", 5)
    command = ["--standalone", "--nproc-per-node", "2", "-m", "--"]
    # Without -- torchrun would read --n.
    command += ["sdekit_diffusion", *map(str, argv), "--out", f"{tmp_path / 'two'}/"]
    process = context.Process(target=torchrun, args=(command, tmp_path / "said"))
    process.start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "said.2").read_text()
    assert (tmp_path / "said.1").read_text().count("7 samples in") == 1
    assert main([*map(str, argv), "--out", str(tmp_path / "one.npz")]) == 0
    levels = np.load(tmp_path / "one.npz")["samples"]
    assert len(np.unique(levels)) > 8
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        f"{i:06d}.png" for i in range(3, 10)
    ]
    for i, image in enumerate(levels):
        with Image.open(tmp_path / "two" / f"{3 + i:06d}.png") as found:
            assert np.array_equal(np.asarray(found), np.rint(image[0] * (255 / 16)))


def launcher(total, port, argv, folder):
    """A process that starts the others and waits, as torchrun does."""
    os.environ["TORCHELASTIC_RUN_ID"] = "1"
    for i in range(total):
        multiprocessing.get_context("fork").Process(
            target=one_of, args=(i, total, port, main, argv, str(folder / f"said{i}"))
        ).start()
    time.sleep(600)


def test_processes_end_with_torchrun(points, context, tmp_path):
    """Where torchrun alone is killed its processes go no further, beside others that may have taken
    their place.
    """
    shards = tmp_path / "x.npz.shards"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    argv = [
        "sample",
        str(points),
        "--n",
        "2000",
        "--batch-size",
        "2",
        "--steps",
        "100",
        "--out",
        str(tmp_path / "x.npz"),
    ]
    process = context.Process(target=launcher, args=(2, store.port, argv, tmp_path))
    process.start()
    until(lambda: counted(shards) > 2)
    process.kill()
    process.join()
    time.sleep(0.6)
    left = counted(shards)
    assert 2 < left < 1000
    time.sleep(0.4)
    assert counted(shards) == left


def test_an_error_is_told_once(points, context, tmp_path):
    for argv in (["--method", "nix"], ["--speed", "9"]):
        codes, said, errors = together(
            context, 2, ["sample", points, "--out", tmp_path / "x.npz", *argv], tmp_path
        )
        assert codes == [2, 2]
        assert said == ""
        assert len(errors.splitlines()) == 1
        assert errors.startswith("error: ")
        assert not (tmp_path / "x.npz.shards").exists()
        for path in tmp_path.glob("said*"):
            path.unlink()


@pytest.mark.parametrize("run", ["points", "images"])
def test_likelihoods_of_one_process_and_of_two(run, request, context, tmp_path, capsys):
    folder = request.getfixturevalue(run)
    argv = [
        "likelihood",
        folder,
        "--n",
        "5",
        "--batch-size",
        "2",
        "--tolerance",
        "1e-2",
        "--probes",
        "2",
        "--csv",
    ]
    assert main([*map(str, argv), str(tmp_path / "one.csv")]) == 0
    one = capsys.readouterr().out
    codes, two, _ = together(context, 2, [*argv, tmp_path / "two.csv"], tmp_path)
    assert (codes, two) == ([0, 0], one)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert not list(tmp_path.glob("*.shards"))
    model, name = trained.opened(folder, Loading())
    x = trained.source_of(name, model.scale).test[:5]
    whole = held_out.summed(
        held_out.measured(model, model.scale, x, Estimate(2, 2, 1e-2), batch_size=2), model.scale
    )
    assert one.splitlines()[0].endswith(whole.sentences()[0])
    rows = np.loadtxt(tmp_path / "one.csv", delimiter=",", skiprows=1)
    assert np.array_equal(rows[:, 1:], np.stack([whole.value, whole.stderr], axis=1))


def test_likelihoods_depend_on_the_number_of_the_sample(images):
    """Probes and dequantisation of sample i are those of (seed, first + i)."""
    model, name = trained.opened(images, Loading())
    x = trained.source_of(name, model.scale).test[:1].expand(3, -1, -1, -1)
    estimate = Estimate(probes=1, draws=2, tolerance=1e-2)
    whole, last, other = (
        held_out.measured(model, model.scale, some, estimate, first=first, batch_size=1)
        for some, first in ((x, 0), (x[2:], 2), (x[2:], 5))
    )
    assert torch.equal(whole.draws[:, 2:], last.draws)
    assert torch.equal(whole.probe_stderr[2:].isnan(), last.probe_stderr.isnan())
    assert not torch.equal(whole.draws[:, 1:2], last.draws)
    assert not torch.equal(other.draws, last.draws)


def squares(first, count):
    i = torch.arange(first, first + count)
    return {"square": i**2, "half": (i / 2)[:, None].numpy()}


def all_of(shards):
    parts = list(shards)
    return np.concatenate([part["square"] for part in parts])


@pytest.fixture
def shards(tmp_path):
    return sd.Shards(tmp_path / "shards", 10, 4, first=3, settings={"steps": 6})


def test_parts_in_order(shards):
    shards.fill(squares)
    assert [path.name for path in sorted(shards.folder.iterdir())] == [
        "000000003-4.npz",
        "000000007-4.npz",
        "000000011-2.npz",
    ]
    assert np.array_equal(all_of(shards), np.arange(3, 13) ** 2)
    assert [part["half"].shape for part in shards] == [(4, 1), (4, 1), (2, 1)]
    shards.fill(lambda first, count: pytest.fail("made again"))
    (shards.folder / "mine.txt").write_text("kept")
    shards.remove()
    assert [path.name for path in shards.folder.iterdir()] == ["mine.txt"]


def test_nothing_of_nothing(tmp_path):
    shards = sd.Shards(tmp_path / "shards", 0, 4)
    shards.fill(squares)
    assert all_of(shards).shape == (0,)
    with pytest.raises(ValueError, match="n must be 0 or more, not -1"):
        sd.Shards(tmp_path / "shards", -1, 4)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        sd.Shards(tmp_path / "shards", 3, 0)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"first": -1}, ValueError),
        ({"first": 0.0}, TypeError),
        ({"n": 10.0}, TypeError),
        ({"n": True}, TypeError),
        ({"batch_size": 4.0}, TypeError),
        ({"batch_size": "4"}, TypeError),
    ],
)
def test_numbers_of_samples_are_whole(tmp_path, given, error):
    with pytest.raises(error, match=f"{next(iter(given))}.* {next(iter(given.values()))!r}"):
        sd.Shards(tmp_path / "shards", **{"n": 10, "batch_size": 4, **given})


def test_settings_that_are_not_numbers(tmp_path):
    """NaN is equal to itself here, and numbers of numpy are those of Python."""
    settings = {"a": float("nan"), "b": [float("nan")], "c": 1}
    sd.Shards(tmp_path, np.int64(4), 2, settings=settings).fill(squares)
    again = sd.Shards(tmp_path, 4, 2, settings={**settings, "c": np.float32(1)})
    again.fill(lambda first, count: pytest.fail("made again"))
    assert len(list(again)) == 2
    with pytest.raises(ValueError, match=r"with a nan \(now 0.5\); repeat"):
        sd.Shards(tmp_path, 4, 2, settings={**settings, "a": 0.5}).fill(squares)
    wrong = sd.Shards(tmp_path / "new", 4, 2, settings={"a": torch.float32})
    with pytest.raises(TypeError, match=r"settings must be what JSON can .* not torch.float32"):
        wrong.fill(lambda first, count: pytest.fail("not before the work"))
    assert not (tmp_path / "new").exists()


def test_tensors_of_any_kind_are_stored(tmp_path):
    shards = sd.Shards(tmp_path, 2, 2)
    x = torch.tensor([0.5, -3.0])
    shards.fill(lambda first, count: {"half": x.bfloat16(), "graph": x.clone().requires_grad_()})
    (part,) = shards
    assert (part["half"].dtype, part["half"].tolist()) == (np.float32, [0.5, -3.0])
    assert part["graph"].tolist() == [0.5, -3.0]


@pytest.mark.parametrize(
    "found", [{"square": torch.zeros(3)}, {"square": np.float64(1.0)}, {"settings": torch.zeros(4)}]
)
def test_what_work_may_return(shards, found):
    with pytest.raises(ValueError, match=r"work\(3, 4\) returned"):
        shards.fill(lambda first, count: found)
    with pytest.raises(ValueError, match="Object arrays"):
        shards.fill(lambda first, count: {"square": np.array([shards] * count, dtype=object)})
    assert not shards.folder.exists()


def test_a_damaged_part_is_made_again(shards):
    shards.fill(squares)
    first, second, third = sorted(shards.folder.iterdir())
    kept = third.read_bytes()
    first.write_bytes(first.read_bytes()[:-30])
    second.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged .*; run the same command again"):
        list(shards)
    with pytest.warns(UserWarning, match="made again") as warned:
        shards.fill(squares)
    assert len(warned) == 2
    assert np.array_equal(all_of(shards), np.arange(3, 13) ** 2)
    assert third.read_bytes() == kept


def test_a_part_that_unpacks_to_far_more_than_its_size_is_damaged(shards):
    shards.fill(squares)
    path, *_ = sorted(shards.folder.iterdir())
    with np.load(path) as archive:
        settings = archive["settings"]
    np.savez_compressed(path, x=np.zeros(10**7), settings=settings)
    with pytest.raises(ValueError, match=r"is damaged .*more than 500 times as many"):
        list(shards)


def test_no_bit_turns_unseen(tmp_path):
    shards = sd.Shards(tmp_path / "shards", 2, 2)
    shards.fill(squares)
    (path,) = shards.folder.iterdir()
    sound = path.read_bytes()
    seen = 0
    rng = np.random.default_rng(0)
    for i in range(0, len(sound), 3):
        path.write_bytes(
            sound[:i] + bytes([sound[i] ^ (1 << int(rng.integers(8)))]) + sound[i + 1 :]
        )
        try:
            assert all_of(shards).tolist() == [0, 1]
        except ValueError as error:
            assert "is damaged" in str(error)  # noqa: PT017
            seen += 1
    assert seen > len(sound) / 6


def test_other_settings_are_refused(shards):
    def twice(first, count):
        if first > 3:
            raise KeyError
        return squares(first, count)

    with pytest.raises(KeyError):
        shards.fill(twice)
    other = sd.Shards(shards.folder, 10, 5, first=3, settings={"steps": 7, "eta": 1.0})
    with pytest.raises(
        ValueError,
        match=r"steps 6 \(now 7\), batch_size 4 \(now 5\), eta None "
        r"\(now 1.0\); repeat that one",
    ):
        other.fill(squares)
    shards.fill(squares)
    assert np.array_equal(all_of(shards), np.arange(3, 13) ** 2)


def failing(function, after, code):
    """The function, which fails when it is called after `after` calls."""
    calls = iter(range(10**6))

    def called(*args, **options):
        if next(calls) >= after:
            raise OSError(code, os.strerror(code))
        return function(*args, **options)

    return called


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (zipfile, "ZipFile", 1),
        (np.lib.format, "write_array", 4),
        (os, "fsync", 2),
        (os, "fsync", 3),
        (os, "replace", 1),
    ],
)
def test_faults_leave_what_was_there(shards, place, name, after, code, monkeypatch):
    """The second part fails; `fsync` is called for a file and for its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing(getattr(place, name), after, code))
        with pytest.raises(
            OSError, match=f"000000007-4.npz cannot be written: {os.strerror(code)}"
        ) as caught:
            shards.fill(squares)
    assert caught.value.errno == code
    first = shards.folder / "000000003-4.npz"
    kept = first.stat().st_ino, first.read_bytes()
    assert {path.suffix for path in shards.folder.iterdir()} == {".npz"}
    shards.fill(squares)
    assert (first.stat().st_ino, first.read_bytes()) == kept
    assert np.array_equal(all_of(shards), np.arange(3, 13) ** 2)


def test_a_file_keeps_its_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with atomic.replace_atomically(path) as beside:
            beside.write_bytes(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert path.read_bytes() == b"old"
    with atomic.replace_atomically(path) as beside:
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def told(capsys, *argv):
    """The error of a command that fails, its only line."""
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    lines = [
        line for line in err.replace("\r", "\n").splitlines() if line.strip() and "/s]" not in line
    ]
    assert (out, len(lines)) == ("", 1), err
    return lines[0]


def test_a_full_disk_in_the_end(points, expected, tmp_path, capsys, monkeypatch):
    """The old file stays, the parts stay, and the same command goes on."""
    out = tmp_path / "x.npz"
    out.write_bytes(b"old")
    argv = ["sample", points, "--out", out, *SAMPLE]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(os.replace, 6, errno.ENOSPC))
        assert "x.npz cannot be written: No space left on device" in told(capsys, *argv)
    assert out.read_bytes() == b"old"
    assert [path.name for path in sorted((tmp_path / "x.npz.shards").iterdir())] == NAMES
    with monkeypatch.context() as patch:
        patch.setattr(sd, "sample", lambda *args, **options: pytest.fail("drawn again"))
        assert "steps 6 (now 7)" in told(capsys, *argv, "--steps", "7")
        assert main([str(part) for part in argv]) == 0
    assert np.array_equal(np.load(out)["samples"], expected)


def test_a_folder_that_cannot_be_made(points, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir, 0, errno.EROFS))
    assert "cannot be made: Read-only file system" in told(
        capsys, "sample", points, "--out", tmp_path / "x.npz"
    )
    assert "cannot be made: Read-only file system" in told(
        capsys, "likelihood", points, "--csv", tmp_path / "x.csv"
    )


def test_another_model_is_refused(points, images, tmp_path, capsys, monkeypatch):
    argv = ["sample", "--out", tmp_path / "x.npz", "--n", "4", "--batch-size", "2", "--steps", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(os.replace, 1, errno.EIO))
        told(capsys, *argv, points)
    line = told(capsys, *argv, images)
    assert "with model" in line
    assert "remove the folder to start again" in line


def test_parts_as_the_output(points, expected, tmp_path, capsys):
    out = tmp_path / "new" / "x.shards"
    assert main(["sample", str(points), "--out", str(out), *SAMPLE]) == 0
    assert "of shape (23, 2)" in capsys.readouterr().out
    assert [path.name for path in sorted(out.iterdir())] == NAMES
    assert np.array_equal(
        np.concatenate([np.load(path)["samples"] for path in sorted(out.iterdir())]), expected
    )


def test_what_folders_of_images_refuse(points, images, tmp_path, capsys):
    argv = ["sample", images, "--n", "2", "--steps", "3", "--out", tmp_path / "images"]
    assert main([str(part) for part in argv]) == 0
    assert "000001.png already" in told(capsys, *argv, "--first", "1")
    assert main([*map(str, argv), "--first", "2"]) == 0
    assert len(list((tmp_path / "images").iterdir())) == 4
    assert "end" in told(capsys, "sample", points, "--out", tmp_path / "points")


@pytest.mark.filterwarnings("ignore:x_T has the")
def test_failures_name_samples_of_the_whole(tmp_path):
    """Of the second part's samples the last is not finite."""

    def drawn(first, count):
        x_T = torch.arange(first, first + count, dtype=torch.float32)[:, None]
        return {
            "x": sd.sample(
                lambda x, t: torch.where(x_T == 17, torch.nan, -x), sde="vp", x_T=x_T, steps=2
            )
        }

    with pytest.raises(ArithmeticError, match=r"in 1 of 8 samples \(rows 7\)"):
        sd.Shards(tmp_path / "shards", 8, 4, first=10).fill(drawn)


@pytest.mark.parametrize("name", ["x.npz", "x.png", "images", "x.shards"])
def test_what_stands_in_the_way_is_refused_before_the_work(points, images, tmp_path, capsys, name):
    if "." in name and not name.endswith(".shards"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    assert main(["sample", str(images), *SAMPLE, "--out", str(tmp_path / name)]) == 2
    assert "choose another" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parts_of_other_settings_are_not_put_together(tmp_path):
    """Whoever wrote them, and whenever."""
    ones, twos = (
        sd.Shards(tmp_path / name, 4, 2, settings={"seed": seed})
        for name, seed in (("a", 1), ("b", 2))
    )
    for shards in (ones, twos):
        shards.fill(lambda first, count: {"x": np.arange(first, first + count)})
    (tmp_path / "b" / "000000002-2.npz").rename(tmp_path / "a" / "000000002-2.npz")
    with pytest.raises(ValueError, match="results of another run, with seed 2"):
        list(ones)


def test_a_digest_differs_where_tensors_of_the_same_bytes_do():
    """In their names, their types or their shapes; and where what they are about does."""
    ones = torch.ones(6)
    one = digest("a", {"w": ones})
    assert digest("a", {"w": ones.clone()}) == one
    others = [
        digest("b", {"w": ones}),
        digest("a"),
        digest("a", {"v": ones}),
        digest("a", {"w": ones.view(torch.int32)}),
        digest("a", {"w": ones.reshape(2, 3)}),
        digest("a", {"w": ones.reshape(3, 2)}),
        digest("a", {"w": -ones}),
        digest("a", {"w": ones[:3], "v": ones[3:]}),
    ]
    assert len({one, *others}) == 1 + len(others)


def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    shards = sd.Shards(tmp_path / "a", 4, 2)
    shards.fill(lambda first, count: {"x": np.arange(first, first + count)})

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(OSError, match="Input/output error"):
            shards.fill(lambda first, count: {"x": np.zeros(count)})
    assert np.concatenate([part["x"] for part in shards]).tolist() == [0, 1, 2, 3]


def test_two_runs_do_not_fill_one_folder(tmp_path):
    shards = sd.Shards(tmp_path / "a", 2, 2)

    def work(first, count):
        with pytest.raises(OSError, match="another process is at work in"):
            sd.Shards(tmp_path / "a", 2, 2).fill(lambda first, count: {"x": np.zeros(count)})
        return {"x": np.ones(count)}

    shards.fill(work)
    assert next(iter(shards))["x"].tolist() == [1, 1]
