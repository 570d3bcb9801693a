"""Conditions are part of the data: they stay with their rows, are dropped by seed and number, and a
run with them resumes bit-identical.
"""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import sdekit_diffusion as sd
from sdekit import uniform01
from sdekit_diffusion import Batch, Recipe, ScoreModel, Training, fit, nets, validation_loss
from sdekit_diffusion._models.checkpoint import checksum
from sdekit_diffusion._models.condition_values import names_of
from sdekit_diffusion._models.counters import DROP
from sdekit_diffusion._training.recipe_loss import RecipeLoss
from sdekit_diffusion.data._batches import Shuffled
from sdekit_diffusion.data._given import source_of
from sdekit_diffusion.data._stream import Stream

N = 40
X = torch.arange(2.0 * N).reshape(N, 2) / 50
LABEL = torch.arange(N) % 3
RECIPE = Recipe(steps=6, batch_size=8, warmup=0, drop=0.3)


def model(net=None, **settings):
    torch.manual_seed(0)
    net = nets.MLP(shape=(2,), width=8, depth=1, classes=3) if net is None else net
    return ScoreModel(net, "vp", shape=(2,), conditioning="log_snr", **settings)


def with_labels():
    """The same samples and labels in every form that is accepted."""
    pairs = TensorDataset(X, LABEL)
    return {
        "pair": (X, LABEL),
        "pair of arrays": (X.numpy(), LABEL.numpy()),
        "pair with a list": (X, LABEL.tolist()),
        "pair with a dictionary": (X, {"label": LABEL}),
        "dictionary": {"x": X, "label": LABEL},
        "dictionary, the samples under another name": {"points": X, "label": LABEL},
        "TensorDataset": pairs,
        "source": Shuffled(X, {"label": LABEL}),
        "data set": sd.data.Dataset(X, X, sd.data.Scale(), "made", LABEL, LABEL),
        "loader": DataLoader(pairs, batch_size=5),
        "loader that shuffles": DataLoader(pairs, batch_size=5, shuffle=True),
        "loader with workers": DataLoader(pairs, num_workers=1),
        "torch's data set": [(x, y) for x, y in zip(X, LABEL, strict=True)],
    }


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.mark.parametrize("kind", with_labels())
def test_labels_stay_with_their_rows(kind):
    """In every form the same batches: those of the seed, each row with its label."""
    data = with_labels()[kind]
    data = Items(data) if isinstance(data, list) else data
    expected = Shuffled(X, {"label": LABEL}).batches(7, seed=3, first=5)
    found = source_of(data, ["label"]).batches(7, seed=3, first=5)
    for _ in range(12):
        batch = Batch.of(next(found))
        same = Batch.of(next(expected))
        assert torch.equal(batch.x, same.x)
        assert torch.equal(batch.conditions["label"], same.conditions["label"])
        row = (batch.x[:, 0] * 25).round().long()
        assert torch.equal(batch.conditions["label"], row % 3)


def test_arrays_of_the_other_byte_order():
    """As those of some files are; a run may have begun with the same numbers in the usual one."""
    x = X.numpy()
    label = LABEL.numpy()
    swapped = tuple(values.astype(values.dtype.newbyteorder("S")) for values in (x, label))
    Training(model(), swapped, RECIPE)
    found = source_of(swapped, ["label"])
    expected = source_of((x, label), ["label"])
    assert found.fingerprint == expected.fingerprint
    one = Batch.of(next(found.batches(7)))
    other = Batch.of(next(expected.batches(7)))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.conditions["label"], other.conditions["label"])


@pytest.mark.parametrize(
    "data",
    [
        (X,),
        TensorDataset(X),
        DataLoader(TensorDataset(X), batch_size=4),
        Subset(TensorDataset(X), range(N)),
        DataLoader(X, collate_fn=lambda items: [torch.stack(items)]),
    ],
)
def test_one_part_is_the_samples(data):
    batch = Batch.of(next(source_of(data, ["label"]).batches(7, seed=3)))
    assert torch.equal(batch.x, next(Shuffled(X).batches(7, seed=3)))
    assert not batch.conditions


def test_parts_of_batches_are_those_of_the_processes():
    loader = DataLoader(TensorDataset(X, LABEL))
    for data in ((X, LABEL), loader):
        source = source_of(data, ["label"])
        whole = Batch.of(next(source.batches(7, seed=1)))
        parts = [
            Batch.of(next(source.batches(7, seed=1, part=slice(i, j)))) for i, j in ((0, 3), (3, 7))
        ]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        joined = torch.cat([part.conditions["label"] for part in parts])
        assert torch.equal(joined, whole.conditions["label"])
        none = Batch.of(next(source.batches(7, seed=1, part=slice(7, 7))))
        assert none.x.shape == (0, 2)
        assert none.conditions["label"].shape == (0,)


class Lines(IterableDataset):
    def __iter__(self):
        return iter(zip(X, LABEL, strict=True))


@pytest.mark.parametrize(
    "loader",
    [
        Lines(),
        DataLoader(Lines(), batch_size=6),
        DataLoader(
            TensorDataset(X, LABEL),
            batch_size=4,
            sampler=list(range(N)),  # any order of one's own
        ),
        DataLoader(TensorDataset(X, LABEL), batch_sampler=list(torch.arange(N).split(7))),
        DataLoader(TensorDataset(X, LABEL), batch_sampler=BatchSampler(range(N), 4, False)),
        DataLoader(TensorDataset(X, LABEL), sampler=SequentialSampler(range(N))),
    ],
)
def test_an_order_of_its_own_is_kept(loader):
    batches = source_of(loader, ["label"]).batches(16, first=32)
    first = Batch.of(next(batches))
    rows = torch.arange(32, 48) % N
    assert torch.equal(first.x, X[rows])
    assert torch.equal(first.conditions["label"], LABEL[rows])
    part = next(source_of(loader, ["label"]).batches(16, first=32, part=slice(4, 6)))
    assert torch.equal(Batch.of(part).x, X[rows[4:6]])


@pytest.mark.parametrize(
    "sampler",
    [
        SequentialSampler(range(9)),
        RandomSampler(range(9)),
        RandomSampler(X[:9], replacement=True, num_samples=N),
        RandomSampler(X, num_samples=9),
        RandomSampler(X, replacement=True),
    ],
)
def test_a_sampler_of_torch_that_was_chosen_is_used(sampler):
    torch.manual_seed(2)
    loader = DataLoader(X, batch_size=4, sampler=sampler)
    assert source_of(loader, ()).fingerprint.startswith("a stream")
    if sampler.data_source is not X:
        found = next(source_of(loader, ()).batches(N)).x
        assert bool((found[:, None] == X[:9]).all(dim=2).any(dim=1).all())


def test_the_default_samplers_of_torch_are_not_used():
    loader = DataLoader(X, batch_size=4, sampler=RandomSampler(X))
    found = next(source_of(loader, ()).batches(N, seed=3)).x
    assert torch.equal(found, next(Shuffled(X).batches(N, seed=3)))


def test_a_loader_leaves_torchs_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    source = source_of(DataLoader(TensorDataset(X, LABEL), shuffle=True), ["label"])
    next(source.batches(4))
    assert torch.equal(torch.rand(3), expected)


def test_items_that_draw_depend_on_their_place_alone():
    class Noisy(Items):
        def __getitem__(self, i):
            return torch.rand(2), LABEL[i]

    source = source_of(Noisy(range(N)), ["label"])
    first, second, third = (
        Batch.of(b).x for b, _ in zip(source.batches(4), range(3), strict=False)
    )
    resumed = source_of(Noisy(range(N)), ["label"]).batches(4, first=8)
    assert torch.equal(Batch.of(next(resumed)).x, third)
    assert not bool((first == second).any())


@pytest.mark.parametrize(
    ("more", "made"), [(lambda x: torch.cat([x, -x]), 2), (lambda x: x[1:], 0)]
)
def test_batches_have_a_sample_for_each_item(more, made):
    """The second half of views of two kinds was never seen."""
    loader = DataLoader(X, batch_size=4, collate_fn=lambda items: more(torch.stack(items)))
    with pytest.raises(ValueError, match=rf"made {made} samples of 1 items: its collate_fn must"):
        source_of(loader, ())


class Drawn(torch.utils.data.Dataset):
    """Items that are random numbers."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.rand(())


@pytest.mark.parametrize("workers", [0, 1])
def test_items_of_other_processes_and_seeds_draw_other_numbers(workers):
    source = source_of(DataLoader(Drawn(), num_workers=workers), ())

    def drawn(size, **place):
        return set(Batch.of(next(source.batches(size, **place))).x.tolist())

    assert len(drawn(8, part=slice(0, 4)) | drawn(8, part=slice(4, 8))) == 8
    assert len(drawn(8, first=8) | drawn(8, seed=8)) == 16
    assert drawn(8, part=slice(4, None)) == drawn(8, part=slice(-4, 8))


def test_an_order_that_is_drawn_is_the_same_in_each_process():
    loader = DataLoader(X, sampler=torch.utils.data.SubsetRandomSampler(range(N)))
    source = source_of(loader, ())
    parts = [next(source.batches(N, part=slice(i, i + 10))).x for i in range(0, N, 10)]
    assert torch.equal(torch.cat(parts), next(source.batches(N)).x)


def test_streams_carry_their_classes():
    rows = list(range(N))
    stream = Stream([lambda: rows], lambda r: X[r], 1, label=lambda r: LABEL[r])
    assert isinstance(next(stream.batches(4)), torch.Tensor)
    labelled = stream.labelled("label")
    for batch, _ in zip(labelled.batches(8, seed=2), range(9), strict=False):
        x, conditions = batch
        assert torch.equal(conditions["label"], (x[:, 0] * 25).round().long() % 3)
    data = sd.data.Dataset(stream, X, sd.data.Scale(), "made", LABEL, None, X)
    assert next(source_of(data, ["label"]).batches(4)).conditions["label"].shape == (4,)
    assert isinstance(next(source_of(data, []).batches(4)), torch.Tensor)
    some = Stream([lambda: rows], lambda r: X[r], 1, label=lambda r: None).labelled("label")
    with pytest.raises(ValueError, match="have no class"):
        next(some.batches(4))


def test_each_condition_is_dropped_by_seed_and_number():
    """Each with its own probability, others with none, the same in any part of a batch."""

    class Recorder(nn.Module):
        null = {"label": -1, "context": math.nan}

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.seen = []

        def forward(self, x, t, *, label=None, context=None):
            self.seen.append((label, context))
            return self.layer(x)

    n = 4000
    x = torch.zeros(n, 2)
    conditions = {"context": torch.ones(n, 3), "label": torch.ones(n, dtype=torch.long)}
    recipe = Recipe(drop={"label": 0.25, "context": 0.5}, seed=3)
    network = Recorder()
    loss = RecipeLoss(model(network), recipe, None)
    loss(x, conditions, 10)
    ((label, context),) = network.seen
    dropped = label == -1
    gone = context.isnan()
    assert torch.equal(gone.all(1), gone.any(1))
    # Five standard deviations: once in two million.
    assert abs(int(dropped.sum()) - 0.25 * n) < 5 * math.sqrt(n * 0.25 * 0.75)
    assert abs(int(gone[:, 0].sum()) - 0.5 * n) < 5 * math.sqrt(n * 0.25)
    both = int((dropped & gone[:, 0]).sum())
    assert abs(both - 0.125 * n) < 5 * math.sqrt(n * 0.125 * 0.875)  # independent
    index = torch.arange(10, 10 + n)
    assert torch.equal(gone[:, 0], uniform01(3, index, (), counter=DROP) < 0.5)
    assert torch.equal(dropped, uniform01(3, index, (), counter=DROP - 1) < 0.25)
    part = {name: value[100:] for name, value in conditions.items()}
    RecipeLoss(model(network), recipe, None)(x[100:], part, 110)
    assert torch.equal(network.seen[1][0], label[100:])
    assert torch.equal(network.seen[1][1].isnan(), gone[100:])
    RecipeLoss(model(network), replace(recipe, drop=0.0), None)(x, conditions, 0)
    assert bool((network.seen[2][0] == 1).all())
    assert bool((network.seen[2][1] == 1).all())
    RecipeLoss(model(network), replace(recipe, drop=1.0), None)(x, conditions, 0)
    assert bool((network.seen[3][0] == -1).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_small_integers_are_dropped_too(dtype):
    """-1 is none of MNIST's bytes."""
    fit(model(), (X, LABEL.to(dtype)), replace(RECIPE, drop=0.5), progress=False)


def test_a_run_with_labels_resumes_to_the_bit(tmp_path):
    data = {"x": X, "label": LABEL}
    whole = model()
    fit(whole, data, RECIPE, progress=False)
    training = Training(model(), data, RECIPE)
    for _ in range(3):
        next(training)
    state = training.state_dict()
    resumed = Training(model(), data, RECIPE)
    resumed.load_state_dict(state)
    list(resumed)
    for a, b in zip(whole.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), data, RECIPE, folder=tmp_path, callback=_stop_at(3), progress=False)
    again = model()
    fit(again, data, RECIPE, folder=tmp_path, resume=True, progress=False)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    loaded = sd.load(tmp_path)
    assert loaded.null == {"label": -1}
    with pytest.raises(ValueError, match="begun on other data"):
        fit(
            model(), (X, LABEL.flip(0)), RECIPE, folder=tmp_path, resume=True, progress=False
        )  # the labels belong to other rows


def _stop_at(step):
    def stop(record):
        if record.step == step:
            raise KeyboardInterrupt

    return stop


def labelled_worker(number, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
    )
    torch.set_num_threads(1)
    trained = model().double()
    data = {"x": X.double(), "label": LABEL}
    records = fit(trained, data, replace(RECIPE, batch_size=9), progress=False)
    losses = [float(record.loss) for record in records]
    torch.save({"losses": losses, "weights": trained.state_dict()}, f"{folder}/{number}")
    distributed.destroy_process_group()


@pytest.mark.usefixtures("context")
def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.start_processes(
        labelled_worker, (str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    first, second = (torch.load(tmp_path / str(i), weights_only=True) for i in range(2))
    alone = model().double()
    data = {"x": X.double(), "label": LABEL}
    records = fit(alone, data, replace(RECIPE, batch_size=9), progress=False)
    assert first["losses"] == pytest.approx([float(r.loss) for r in records], rel=1e-9)
    for name, value in alone.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-6, atol=1e-9)


def test_accumulation_changes_rounding_only():
    one, three = model(), model()
    fit(one, (X, LABEL), RECIPE, progress=False)
    fit(three, (X, LABEL), replace(RECIPE, accumulate=3), progress=False)
    for a, b in zip(one.parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_labels_are_learnt():
    """A network that sees the label alone predicts each class's data."""
    centres = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    label = torch.arange(600) % 3
    x = centres[label] + 0.05 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    trained = model(nets.MLP(shape=(2,), width=32, depth=2, classes=3), predicts="velocity")
    fit(trained, (x, label), Recipe(steps=150, batch_size=64, lr=1e-2), progress=False)
    wanted = torch.arange(300) % 3
    samples = sd.sample(trained.given(label=wanted), 300, steps=10, seed=0)
    nearest = torch.cdist(samples, centres).argmin(1)
    assert int((nearest == wanted).sum()) >= 297
    one = sd.sample(trained.given(label=2), 100, steps=10, seed=0)
    assert int((torch.cdist(one, centres).argmin(1) == 2).sum()) >= 99
    any_class = sd.sample(trained.unconditional(), 300, steps=10, seed=0)
    counts = torch.cdist(any_class, centres).argmin(1).bincount(minlength=3)
    assert int(counts.min()) > 50  # of about 100, standard deviation 8


def test_validation_with_labels():
    trained = model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained.eval()
    found = validation_loss((X, LABEL))(trained, 0)["validation_loss"]
    by_name = validation_loss({"x": X, "label": LABEL}, Recipe(drop=1.0))(trained, 0)
    assert by_name["validation_loss"] == found  # never dropped
    given = validation_loss(X)(trained.given(label=LABEL), 0)["validation_loss"]
    assert given == pytest.approx(found, rel=1e-6)
    assert validation_loss((X, LABEL.flip(0)))(trained, 0)["validation_loss"] != found
    with pytest.raises(ValueError, match="entry for each of 40"):
        validation_loss((X, LABEL[1:]))(trained, 0)
    with pytest.raises(ValueError, match="built for label and the data have none"):
        validation_loss(X)(trained, 0)
    with pytest.raises(TypeError, match="x must be a tensor"):
        validation_loss({"points": X})


def test_data_sets_bring_labels_and_scale():
    data = sd.data.load("digits")
    labelled = ScoreModel(
        nets.UNet(channels=1, width=8, classes=10), "vp", "velocity", shape=(1, 8, 8)
    )
    fit(labelled, data, Recipe(steps=1, batch_size=4), progress=False)
    assert labelled.scale == data.scale
    plain = ScoreModel(nets.UNet(channels=1, width=8), "vp", "velocity", shape=(1, 8, 8))
    fit(plain, data, Recipe(steps=1, batch_size=4), progress=False)  # without labels
    fit(plain, data, Recipe(steps=1, batch_size=4), progress=False)  # the same scale again
    other = ScoreModel(nets.UNet(channels=1, width=8), "vp", scale=sd.data.Scale(shift=1.0))
    with pytest.raises(ValueError, match=r"the model is for data of .* and digits has .*leave out"):
        fit(other, data, Recipe(steps=1, batch_size=4), progress=False)
    # Runs that were begun on the samples alone continue with the data set.
    alone = Shuffled(data.train).fingerprint
    assert source_of(data, ()).fingerprint == alone
    assert source_of(replace(data, labels=None), ["label"]).fingerprint == alone
    assert source_of(data, ["label"]).fingerprint != alone


def test_labels_of_data_sets_are_not_given_to_other_arguments():
    """Unless the argument has the name of one, or a value for no label."""
    data = sd.data.load("digits")

    class Scaled(nn.Conv2d):
        def forward(self, x, t, scale=1.0):
            return super().forward(x) * scale

    scaled = ScoreModel(Scaled(1, 1, 1), "vp", shape=(1, 8, 8))
    with pytest.raises(ValueError, match="digits has labels, and the argument 'scale' of the net"):
        Training(scaled, data, RECIPE)
    fit(scaled, replace(data, labels=None, test_labels=None), RECIPE, progress=False)
    for names, null in ((["y"], ()), (["class_labels"], ()), (["scale"], ["scale"])):
        assert [*next(source_of(data, names, null).batches(2)).conditions] == names
    assert isinstance(next(source_of(data, ["one", "two"]).batches(2)), torch.Tensor)
    pair = (data.train, data.labels)  # given for the only argument
    assert [*next(source_of(pair, ["scale"]).batches(2)).conditions] == ["scale"]


def test_the_scale_of_a_data_set_is_recorded_only_where_it_is_used():
    data = sd.data.load("digits")
    recipe = Recipe(steps=1, batch_size=4)
    unit = sd.data.Scale.quantised(17, low=0.0)
    for transform, scale in (
        (lambda rows, u: (rows + u) / 17, sd.data.Scale()),
        (unit.encode, sd.data.Scale()),
        (replace(data.scale).encode, data.scale),  # an equal one
    ):
        own = ScoreModel(nets.UNet(channels=1, width=8), "vp", shape=(1, 8, 8))
        Training(own, data, recipe, transform=transform)
        assert own.scale == scale
    own = ScoreModel(nets.UNet(channels=1, width=8), "vp", shape=(1, 8, 8), scale=unit)
    Training(own, data, recipe, transform=own.scale.encode)
    assert own.scale == unit


def test_what_is_refused():
    plain = model(nets.MLP(shape=(2,), width=8))
    with pytest.raises(ValueError, match=r"no condition that is known .* samples alone"):
        Training(plain, (X, LABEL), RECIPE)
    with pytest.raises(ValueError, match="built for label and the data have none"):
        Training(model(), X, RECIPE)
    Training(model().given(label=2), X, RECIPE)  # one label for all
    with pytest.raises(ValueError, match="given by the data, and to the model"):
        Training(model().given(label=2), {"x": X, "label": LABEL}, RECIPE)
    with pytest.raises(ValueError, match=r"does not take 'lable'.*did you mean 'label'"):
        Training(model(), {"x": X, "lable": LABEL}, RECIPE)
    with pytest.raises(ValueError, match="39 entries for 40 samples"):
        Training(model(), (X, LABEL[1:]), RECIPE)
    with pytest.raises(TypeError, match=r"label must be numbers.*number the classes"):
        Training(model(), (X, ["a"] * N), RECIPE)
    with pytest.raises(ValueError, match="have 3 parts"):
        Training(model(), (X, LABEL, LABEL), RECIPE)
    with pytest.raises(ValueError, match="samples are given twice"):
        Training(model(), (X, {"x": X, "label": LABEL}), RECIPE)
    with pytest.raises(ValueError, match="one must be the samples"):
        Training(model(), {"a": X, "b": X}, RECIPE)
    with pytest.raises(ValueError, match="drop has a probability for 'context'"):
        Training(model(), (X, LABEL), replace(RECIPE, drop={"context": 0.1}))
    with pytest.raises(ValueError, match=r"drop = 1\.5"):
        Recipe(drop=1.5)
    with pytest.raises(ValueError, match="drop = "):
        Recipe(drop={"label": -0.1})
    bad = X.clone()
    bad[3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        Training(model(), (bad, LABEL), RECIPE)
    with pytest.raises(ValueError, match="does not take 'label'; it takes none"):
        Training(plain, {"x": X, "label": LABEL}, RECIPE)
    with pytest.raises(ValueError, match="have the condition 'y' and the network takes label"):
        Training(model(), Shuffled(X, {"label": LABEL, "y": LABEL}), RECIPE)
    with pytest.raises(ValueError, match="NaN or infinite"):
        next(source_of(DataLoader(TensorDataset(bad, LABEL), batch_size=40), ["label"]).batches(40))


def test_labels_that_are_no_classes_are_refused_before_the_first_batch():
    """Also where the row that has one is the last."""
    label = LABEL.clone()
    label[-1] = 3
    with pytest.raises(ValueError, match=r"label has values from 0 to 3, .* MLP are 0 to 2"):
        Training(model(), (X, label), RECIPE)
    label[-1] = -1  # unknown
    Training(model(), (X, label), RECIPE)


def test_other_networks_say_their_null_values():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, x, t, class_labels):
            return x + self.table(class_labels)

    assert names_of(Net(), {}) == ("class_labels",)
    assert names_of(lambda x, t, **more: x, {}) is None
    assert names_of(lambda x, t, **more: x, {"y": 0}) == ("y",)
    assert names_of(nets.MLP(shape=(2,), width=8), {}) == ()
    with pytest.raises(ValueError, match="not known to work without"):
        model(Net()).unconditional()
    own = model(Net(), null={"class_labels": 3})
    fit(own, (X, LABEL), RECIPE, progress=False)  # the only condition
    u = torch.zeros(5, 2)
    rows = own.given(class_labels=torch.full((5,), 3)).predict_data(0.0, u)
    assert torch.equal(own.unconditional().predict_data(0.0, u), rows)
    assert torch.equal(own.given(class_labels=3).predict_data(0.0, u), rows)
    with pytest.raises(TypeError, match="null has a number for each"):
        model(Net(), null={"class_labels": "none"})


def test_a_condition_that_no_network_takes_is_refused_at_once():
    class Net(nn.Module):
        def forward(self, x, t, class_labels, scale=1.0):
            return x * scale

    own = model(Net())
    with pytest.raises(ValueError, match="takes no 'class_label'; its conditions are class_labels"):
        own.given(class_label=LABEL)
    with pytest.raises(ValueError, match="takes no 'y'; its conditions are none"):
        model(lambda x, t: x).given(y=LABEL)
    own.given(class_labels=LABEL, scale=2.0)
    message = "null has a value for 'class_label', and the network takes no 'class_label'; its "
    message += "conditions are class_labels, scale; did you mean 'class_labels'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(Net(), null={"class_label": 0})
    with pytest.raises(ValueError, match="takes no 'y'; its conditions are none"):
        model(lambda x, t: x, null={"y": 0})
    model(lambda x, t, **more: x, null={"y": 0})
    model(lambda x, t, **more: x).given(anything=LABEL)
    assert names_of(Net(), {"missing": 0}) == ("missing", "class_labels", "scale")


def test_a_model_that_was_never_asked_without_a_condition_warns(tmp_path, recwarn):
    """In Python, after loading and around a compiled network; not where training dropped it."""
    trained = model()
    fit(trained, (X, LABEL), RECIPE, progress=False)
    sd.Guided(trained.given(label=LABEL), 2.0)
    assert not recwarn
    for drop in (0.0, {"label": 0.0}, {}):
        fit(trained, (X, LABEL), replace(RECIPE, drop=drop), progress=False)
        loaded = sd.load(sd.save(trained, tmp_path / "run"))
        for each in (trained, loaded, trained.with_network(trained.net)):
            with pytest.warns(UserWarning, match="drop = 0 for label: what it predicts without"):
                each.unconditional()
            with pytest.warns(UserWarning, match="drop = 0 for label"):
                sd.Guided(each.given(label=LABEL), 2.0)
            with pytest.warns(UserWarning, match="drop = 0 for label"):
                sd.sample(each, 2, steps=2)
            sd.sample(each.given(label=1), 2, steps=2)
    assert not recwarn
    fit(trained, (X, LABEL), RECIPE, progress=False)
    trained.unconditional()
    sd.load(sd.save(trained, tmp_path / "again")).unconditional()
    assert not recwarn


def test_a_run_is_refused_other_labels_in_any_row(tmp_path):
    """Also where they are none of the 1,000 rows that are hashed with the samples. A run of an
    earlier version, which hashed no more, goes on.
    """
    n = 3000
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    label = torch.arange(n) % 3
    other = label.clone()
    other[[1, 2000]] = 0
    assert not np.isin([1, 2000], np.linspace(0, n - 1, 1000).astype(np.int64)).any()
    recipe = replace(RECIPE, steps=2)
    options = {"folder": tmp_path, "progress": False}
    fit(model(), (x, label), recipe, **options)
    fit(model(), (x.numpy(), label.numpy()), recipe, resume=True, **options)
    with pytest.raises(ValueError, match=r"begun on other data .* of all conditions"):
        fit(model(), (x, other), recipe, resume=True, **options)
    path = max((tmp_path / "checkpoints").iterdir()) / "config.json"
    config = json.loads(path.read_text())
    config["notes"]["samples"] = config["notes"]["samples"].partition("; sha256 of all")[0]
    config["sha256"] = checksum(config)
    path.write_text(json.dumps(config))
    fit(model(), (x, label), recipe, resume=True, **options)


def test_a_run_without_dropping_resumes(tmp_path):
    recipe = replace(RECIPE, drop=0.0)
    data = (X, LABEL)
    log = sd.Log(save_every=2)
    stop = [(3, lambda model, step: (_ for _ in ()).throw(KeyboardInterrupt))]
    with pytest.raises(KeyboardInterrupt):
        fit(model(), data, recipe, folder=tmp_path, log=log, measures=stop, progress=False)
    resumed = model()
    fit(resumed, data, recipe, folder=tmp_path, log=log, resume=True, progress=False)
    assert resumed.never_dropped == ("label",)


def test_numbers_become_one_entry_per_sample():
    labelled = model()
    u = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labelled.net.last.weight.normal_(generator=torch.Generator().manual_seed(0))
        expected = labelled.given(label=torch.full((4,), 2)).predict_data(0.0, u)
        assert torch.equal(labelled.given(label=2).predict_data(0.0, u), expected)
        unknown = labelled.given(label=torch.full((4,), -1)).predict_data(0.0, u)
        assert torch.equal(labelled.unconditional().predict_data(0.0, u), unknown)
        assert not torch.equal(expected, unknown)


def test_batches():
    batch = Batch.of((X, {"label": LABEL}))
    parts = batch.split(3)
    assert torch.equal(torch.cat([part.conditions["label"] for part in parts]), LABEL)
    assert Batch.of(X).conditions == {}
    with pytest.raises(TypeError, match="a source yields tensors, or pairs"):
        Batch.of([X, LABEL])
    with pytest.raises(ValueError, match="'label' needs one entry for each of 40"):
        Batch.of((X, {"label": LABEL[1:]}))


class Table:
    """What training sees of pandas: it takes labels of rows, and names of columns."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        raise KeyError(key)

    def to_numpy(self):
        return self.values


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Table(X.numpy()), "data"),
        ((X, Table(LABEL.numpy())), "label"),
        ({"x": X, "label": Table(LABEL.numpy())}, "label"),
    ],
)
def test_tables_are_refused(data, name):
    message = rf"{name} must be a tensor or an array, not a Table, .* \.to_numpy\(\)"
    with pytest.raises(TypeError, match=message):
        fit(model(), data, RECIPE, progress=False)


class Aged(nn.Module):
    """A network whose condition has entries in the dtype of its weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t, age):
        return self.layer(torch.cat([x, age.reshape(-1, 1)], dim=1))


def test_floating_conditions_have_the_dtype_of_x():
    """As numpy's float64, where x is cast to the dtype of the weights."""
    own = model(Aged(), null={"age": -1.0})
    x = X.numpy().astype("float64")
    fit(own, {"x": x, "age": x[:, :1]}, RECIPE, progress=False)
    with torch.no_grad():
        doubled = own.given(age=X[:, 0].double()).predict_data(0.0, X)
        assert torch.equal(doubled, own.given(age=X[:, 0]).predict_data(0.0, X))
        own.double().given(age=0.5).predict_data(0.0, X)  # a number, too
    seen = []
    plain = model(lambda x, t, age: seen.append(age.dtype) or x)
    plain.given(age=X[:, 0].double()).predict_data(0.0, X)
    assert seen == [torch.float64]  # a function has no dtype


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_contexts_of_integers_are_refused(dtype, drop):
    net = nets.MLP(shape=(2,), width=8, context=1)
    context = LABEL[:, None].to(dtype)
    recipe = replace(RECIPE, drop=drop)
    with pytest.raises(TypeError, match=r"floating-point numbers, .* use context\.float\(\)"):
        fit(model(net), {"x": X, "context": context}, recipe, progress=False)
    with pytest.raises(TypeError, match=r"floating-point numbers; use \.float\(\)"):
        sd.Guided(model(net).given(context=context), 2.0).predict_data(0.0, X)


def test_integers_of_other_networks_without_a_whole_null_value_are_refused():
    own = model(Aged(), null={"age": math.nan})
    with pytest.raises(TypeError, match=r"torch\.int64 cannot hold nan, .* use \.float\(\)"):
        fit(own, {"x": X, "age": LABEL}, RECIPE, progress=False)


def test_conditions_that_do_not_fit_are_refused_with_the_shape_of_the_data():
    net = nets.MLP(shape=(2,), width=8, classes=3, context=2)
    label, context = LABEL, X
    good = {"x": X, "label": label, "context": context}
    wrong = {
        r"context has shape \(40,\), but this MLP needs \(40, 2\)": {"context": X[:, 0]},
        r"label has shape \(40, 1\), but this MLP needs \(40,\)": {"label": LABEL[:, None]},
        r"label must hold integers, .* use label\.long\(\)": {"label": LABEL.float()},
        "label has values from 1 to 3": {"label": (LABEL + 1).numpy()},
    }
    Training(model(net), good, RECIPE)
    for message, values in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            Training(model(net), {**good, **values}, RECIPE)
    with pytest.raises(ValueError, match=r"context has shape \(8,\), but this MLP needs \(8, 2\)"):
        Training(
            model(net),
            DataLoader([{**good, "context": 1.0, "x": x, "label": 0} for x in X]),
            RECIPE,
        )


def test_dropped_labels_are_not_named_as_the_users():
    net = nets.MLP(shape=(2,), width=8, classes=3)
    with pytest.raises(ValueError, match="label has values from 1 to 3, "):
        net(X, X[:, 0], label=torch.where(X[:, 0] > 1, -1, LABEL + 1))


def test_one_entry_for_all_samples_is_expanded():
    own = model(nets.MLP(shape=(2,), width=8, context=2))
    for value, n, call in (
        (torch.zeros(2), 7, "context.expand(7, -1)"),
        (torch.zeros(1), 7, "context.expand(7)"),
        (torch.zeros(1, 2), 7, "context.expand(7, -1)"),
    ):
        message = f"context has {len(value)} entries for 7 samples; give one entry per sample, or, "
        message += f"if it is one for all samples, {call}"
        given = own.given(context=value)
        with pytest.raises(ValueError, match=re.escape(message)):
            sd.sample(given, n, steps=2)
        with pytest.raises(ValueError, match=re.escape(message)):
            given.predict_data(0.0, torch.zeros(n, 2))
    for value in (torch.zeros(2), torch.zeros(1, 2)):
        sd.sample(own.given(context=value.expand(7, -1)), 7, steps=2)


def test_infinite_conditions_are_refused_and_unknown_ones_are_not():
    own = model(nets.MLP(shape=(2,), width=8, context=2))
    for value in (math.inf, torch.tensor([[0.0, -math.inf]])):
        with pytest.raises(ValueError, match=r"context has infinite values, .* give finite"):
            own.given(context=value)
    own.given(context=torch.tensor([[0.0, math.nan]]))
    least = model(Aged(), null={"age": -math.inf})
    least.given(age=-math.inf)
    least.unconditional()


@pytest.mark.parametrize("as_array", [False, True])
def test_unknown_contexts_are_refused_in_training_by_name(as_array):
    context = X.clone()
    context[3, 1] = math.nan
    data = {"x": X, "context": context.numpy() if as_array else context}
    own = model(nets.MLP(shape=(2,), width=8, context=2))
    message = "the data have NaN or infinite values in rows 3 of 'context'; remove or repair these"
    with pytest.raises(ValueError, match=message):
        Training(own, data, RECIPE)


def test_a_source_may_yield_unknown_contexts():
    """As docs/networks.md says; and labels may be -1 in all data."""

    class Missing(sd.AbstractSource):
        def batches(self, size, *, seed=0, first=0, part=slice(None)):
            while True:
                context = torch.zeros(size, 2)
                context[::2] = math.nan
                label = torch.full((size,), -1)
                yield Batch(torch.ones(size, 2)[part], {"context": context[part], "label": label})

    own = model(nets.MLP(shape=(2,), width=8, context=2, classes=3))
    before = own.net.conditions.unknown_context.detach().clone()
    fit(own, Missing(), replace(RECIPE, drop=0.0), progress=False)
    assert not torch.equal(own.net.conditions.unknown_context, before)
    fit(own, {"x": X, "context": X, "label": torch.full((N,), -1)}, RECIPE, progress=False)
