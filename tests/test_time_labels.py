"""The labels of the levels of a grid: numbers of their own, kept between calls while unchanged."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdekit_diffusion import ScoreModel, sample
from sdekit_diffusion._models import time_labels
from sdekit_diffusion._models.time_labels import Labels

VALUES = [0.5, 0.25, 0.75, -1.0, 3.0]
X = torch.zeros(4, 1)


def on_cpu(kept, values=VALUES):
    return Labels(values, torch.float32, None, kept)


def found(kept, x=X):
    """The labels of all levels, in a call that may use those of others."""
    call = on_cpu(kept)
    return [call.at(i, x) for i in range(len(VALUES))]


def are_same(first, second):
    return all(a is b for a, b in zip(first, second, strict=True))


def test_labels_are_numbers_of_their_own_in_any_order_and_mode(monkeypatch):
    """Not views of one number, whose functions round in another way; in blocks of levels; and a
    solve may go on outside the inference mode in which it began.
    """
    monkeypatch.setattr(time_labels, "_BLOCK", 8)  # two levels of four samples
    call = on_cpu({})
    for i in (0, 1, 2, 4, 3, 0, 4):
        label = call.at(i, X)
        assert label.tolist() == [VALUES[i]] * 4
        assert label.is_contiguous()
    with torch.inference_mode():
        assert call.at(1, X).is_inference()
    assert not call.at(1, X).is_inference()
    assert call.at(1, X[:0]).shape == (0,)


def test_threads_share_labels(monkeypatch):
    """As those that branch from one stepper do; also with batches of two sizes."""
    monkeypatch.setattr(time_labels, "_BLOCK", 8)
    values = [float(i) for i in range(40)]
    call = on_cpu({}, values)

    def wrong(n):
        x = torch.zeros(n, 1)
        asked = [(i, call.at(i, x)) for _ in range(50) for i in range(40)]
        return sum(label.tolist() != [values[i]] * n for i, label in asked)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(wrong, (1, 3, 3, 5))) == 0
    finally:
        sys.setswitchinterval(interval)


def test_labels_are_kept_for_the_next_batch_of_the_same_kind():
    kept = {}
    first = found(kept)
    assert are_same(first, found(kept))
    for x in (X[:1], X):
        assert [label.tolist() for label in found(kept, x)] == [[v] * len(x) for v in VALUES]
        assert len(kept) == 1
    assert not are_same(first, found(kept))
    doubles = Labels(VALUES, None, None, kept)
    assert doubles.at(0, X.double()).dtype == torch.float64


def test_more_than_a_block_is_not_kept(monkeypatch):
    kept = {}
    for block, size in ((len(VALUES) * len(X) - 1, 0), (len(VALUES) * len(X), 1)):
        monkeypatch.setattr(time_labels, "_BLOCK", block)
        found(kept)
        assert len(kept) == size


def under_vmap(kept):
    torch.func.vmap(lambda x: found(kept)[0] * x)(torch.zeros(2, 4))


def under_inference_mode(kept):
    with torch.inference_mode():
        found(kept)


def under_fake_tensors(kept):
    with FakeTensorMode(allow_non_fake_inputs=True):
        found(kept)


def on_a_device(kept):
    Labels(VALUES, torch.float32, torch.device("meta"), kept).at(0, X)


@pytest.mark.parametrize(
    "call", [under_vmap, under_inference_mode, under_fake_tensors, on_a_device]
)
def test_other_labels_are_neither_kept_nor_taken(call):
    kept = {}
    call(kept)
    assert not kept
    own = found(kept)
    call(kept)
    assert are_same(own, found(kept))


def test_each_thread_has_labels_of_its_own():
    kept = {}
    first = found(kept)
    with ThreadPoolExecutor(1) as pool:
        assert not are_same(first, pool.submit(found, kept).result())


def in_place(t):
    t.mul_(2)


def hidden(t):
    t.data.mul_(2)


def with_numpy(t):
    t.numpy()[:] = 7.0


def replaced(t):
    t.data = 2 * t.data


def reshaped(t):
    t.unsqueeze_(1)


def differentiated(t):
    t.requires_grad_()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    "change", [in_place, hidden, with_numpy, replaced, reshaped, differentiated]
)
def test_labels_that_a_network_changes_are_made_again(change, n):
    kept = {}
    change(found(kept, X[:n])[2])
    again = found(kept, X[:n])
    assert [label.tolist() for label in again] == [[v] * n for v in VALUES]
    assert not any(label.requires_grad for label in again)


def test_a_network_that_changes_its_labels_changes_no_later_call():
    """The same samples from a model whose network changed its labels in an earlier call."""
    changes = []

    def net(x, t):
        out = -x / (1 + t[:, None])
        for change in changes:
            change(t)
        return out

    model = ScoreModel(net, "vp", "score", shape=(2,), data_std=1.0)
    draw = partial(sample, model, 8, steps=10, seed=0)
    expected = draw()
    for change in (with_numpy, differentiated):
        changes[:] = [change]
        draw()
        changes.clear()
        assert torch.equal(draw(), expected)
    changes[:] = [in_place]
    with pytest.raises(RuntimeError, match="in place"):
        draw()
    changes.clear()
    assert torch.equal(draw(), expected)
