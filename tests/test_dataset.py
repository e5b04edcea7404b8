import copy
import json
import pickle
import random
import time
import warnings

import numpy as np
import pytest
import torch
from echo import RECIPE, echo, epochs_of, index_of
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)

from dimdata import artifact, latents, outputs, preview
from dimdata.dataset import GeneratedDataset
from dimdata.errors import ArgumentError, DeviceError, DimdataError, OutOfRangeError
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.staged import join
from dimdata.generators.table import table_generator
from dimdata.outputs import Normalize
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec
from dimdata.students.train import train


def network(shape=(1, 12, 12), classes=10, **changes):
    """Make a small network generator; equal arguments give equal weights."""
    spec = Spec(
        **{
            "kind": "network",
            "method": "dim",
            "dataset": "none",
            "classes": tuple(f"c{i}" for i in range(classes)),
            "image_shape": shape,
            "mean": (0.4,) * shape[0],
            "std": (0.2,) * shape[0],
            "latent": 8,
            "options": {"name": "subpixel", "width": 4, "mid": 4, "stem": 4},
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NetworkGenerator(spec, RECIPE)


def table(rows=6, classes=3, shape=(1, 2, 2), **arguments):
    images = torch.arange(rows)[:, None, None, None].expand(rows, *shape) / rows
    return table_generator(
        images.clone(),
        classes=tuple(f"c{i}" for i in range(classes)),
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        recipe=RECIPE,
        **arguments,
    )


# What an item is.


def test_another_default_device_changes_nothing():
    data = table(rows=6)
    data.recipe = Recipe(legs=(Leg(steps=2, batch_size=3, step_sizes="rates"),), tensors=("rates",))
    data.recipe_tensors = {"rates": torch.ones(2)}
    expected = GeneratedDataset(data)[[0, 1, 2]]
    torch.set_default_device("meta")
    try:
        images, targets = GeneratedDataset(data)[[0, 1, 2]]
    finally:
        torch.set_default_device(None)
    assert torch.equal(images, expected[0])
    assert torch.equal(targets, expected[1])


def test_another_default_device_changes_nothing_of_classes_that_are_asked_for():
    generator = network()
    expected = generator.sample([1, 2, 2])
    torch.set_default_device("meta")
    try:
        images, targets = generator.sample([1, 2, 2])
    finally:
        torch.set_default_device(None)
    assert torch.equal(images, expected[0])
    assert torch.equal(targets, expected[1])


@pytest.mark.parametrize("kind", ["network", "soft", "staged"])
def test_another_default_dtype_changes_nothing(kind, tmp_path):
    made = {
        "network": network,
        "soft": lambda: table(targets=torch.full((6, 3), 1 / 3)),
        "staged": lambda: join([network(), network()], RECIPE, "dim"),
    }[kind]()
    folder = artifact.save(made, tmp_path / "generator")
    expected, picture = GeneratedDataset(folder, 2)[[0, 1, 2]], preview.png(artifact.load(folder), rows=1)
    torch.set_default_dtype(torch.float64)
    try:
        images, targets = GeneratedDataset(folder, 2)[[0, 1, 2]]
        again = preview.png(artifact.load(folder), rows=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(images, expected[0])
    assert torch.equal(targets, expected[1])
    assert again == picture


def test_what_is_made_in_inference_mode_serves_outside():
    outputs._column.cache_clear()
    with torch.inference_mode():
        data = GeneratedDataset(network(), 1)
        data.normalize(torch.rand(2, 1, 12, 12))
    assert len(next(iter(data.loader(5)))[0]) == 5
    images = torch.rand(2, 1, 12, 12, requires_grad=True)
    data.normalize(images).sum().backward()
    assert images.grad is not None


def test_items_of_a_network():
    data = GeneratedDataset(network(), ipc=2)
    image, target = data[13]
    assert len(data) == 20
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 12, 12))
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert type(target) is int
    assert target == 13 % 10


def test_facts():
    generator = network()
    generator.name, generator.revision = "dim-none", "abc123"
    data = GeneratedDataset(generator, 3, seed=5, draw="fixed")
    assert data.classes == [f"c{i}" for i in range(10)]
    assert data.class_to_idx["c7"] == 7
    assert (data.num_classes, data.image_shape) == (10, (1, 12, 12))
    assert (data.mean, data.std) == ((0.4,), (0.2,))
    assert (data.ipc, data.seed, data.draw) == (3, 5, "fixed")
    assert data.spec == generator.spec
    assert data.recipe is generator.recipe
    assert data.targets.dtype == torch.int64
    assert data.targets.tolist() == [i % 10 for i in range(30)]
    assert repr(data) == (
        "GeneratedDataset(name='dim-none', revision='abc123', method='dim', classes=10, shape=(1, 12, 12), ipc=3, "
        "images=30, draw='fixed', seed=5)"
    )


def test_a_table_has_the_images_it_has():
    data = GeneratedDataset(table(rows=5, classes=10))
    assert len(data) == 5
    assert data.ipc is None
    images, targets = data[[0, 4]]
    assert images.mean((1, 2, 3)).tolist() == pytest.approx([0, 0.8])
    assert targets.tolist() == [0, 4]


def test_soft_targets_are_distributions():
    soft = torch.softmax(torch.arange(18.0).view(6, 3).cos(), dim=1)
    data = GeneratedDataset(table(targets=soft))
    assert torch.equal(data[4][1], soft[4])
    assert torch.equal(data.__getitems__([1, 2])[1][1], soft[2])
    assert torch.equal(data[[1, 2]][1], soft[1:3])
    assert torch.equal(data.targets, soft.argmax(1))
    _, targets = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(targets, soft[:4])


def test_stored_labels_are_the_targets():
    labels = torch.tensor([2, 2, 1, 0, 1, 2])
    data = GeneratedDataset(table(labels=labels))
    assert data.targets.tolist() == labels.tolist()
    assert [data[i][1] for i in range(6)] == labels.tolist()


def test_a_stage_is_a_prefix():
    generator = table(stages=(2, 4))
    assert len(GeneratedDataset(generator, stage=1)) == 2
    assert len(GeneratedDataset(generator, stage=2)) == 6
    with pytest.raises(ArgumentError, match="2 stages, not 3"):
        GeneratedDataset(generator, stage=3)


def test_negative_and_odd_indices_are_those_of_a_list():
    data = GeneratedDataset(echo(), ipc=4)
    for index in (-1, -12, 5, np.int64(5), torch.tensor(5)):
        assert index_of(data[index][0]).tolist() == [int(index) % 12]
    for indices in ([-1, 2], torch.tensor([-1, 2]), np.array([-1, 2]), [np.int64(-1), torch.tensor(2)]):
        assert index_of(data[indices][0]).tolist() == [11, 2]
    assert [target for _, target in data] == [i % 3 for i in range(12)]
    assert data.__getitems__([]) == []
    assert data[[]][0].shape == (0, 1, 1, 5)


@pytest.mark.parametrize("index", [12, -13, 2**70])
def test_beyond_the_end_is_an_index_error(index):
    data = GeneratedDataset(echo(), ipc=4)
    with pytest.raises(IndexError, match="there are 12 images") as caught:
        data[index]
    assert isinstance(caught.value, OutOfRangeError)
    if abs(index) < 2**63:
        for indices in ([0, index], torch.tensor([index])):
            with pytest.raises(OutOfRangeError, match=str(index)):
                data[indices]
        with pytest.raises(OutOfRangeError):
            data.__getitems__([0, index])
    assert data.epoch == 0
    assert data._clock.next_epoch == 0  # a refused read leaves no mark


@pytest.mark.parametrize("index", ["3", 1.0, None, [1.0, 2.0], ["a"], torch.tensor([True, False]), slice(3)])
def test_what_is_no_index_is_refused(index):
    with pytest.raises(ArgumentError, match="whole number"):
        GeneratedDataset(echo(), ipc=4)[index]


# Purity and freshness; over workers in test_loader_matrix.py.


def test_latents_are_those_of_seed_epoch_and_index():
    data = GeneratedDataset(echo(), ipc=4, seed=9)
    for epoch in range(3):
        images, targets = data[list(range(12))]
        index = torch.arange(12)
        assert torch.equal(images[:, 0, 0, :4], latents.latents(9, epoch, index, 4))
        assert torch.equal(targets, index % 3)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 16, 16)])
def test_images_do_not_depend_on_the_batch(shape):
    data = GeneratedDataset(network(shape), ipc=4, draw="fixed")
    whole, _ = data[list(range(40))]
    for size in (1, 7, 13):
        parts = torch.cat([images for images, _ in data.loader(size, shuffle=False)])
        assert (parts - whole).abs().max() < 1e-5
        plain = torch.cat([images for images, _ in DataLoader(data, batch_size=size)])
        assert (plain - whole).abs().max() < 1e-5
    assert (torch.stack([data[i][0] for i in range(40)]) - whole).abs().max() < 1e-5
    assert whole.is_contiguous()


def test_a_fixed_draw_is_epoch_0_for_ever():
    data = GeneratedDataset(echo(), ipc=4, draw="fixed")
    data.set_epoch(5)
    for _ in range(3):
        images, _ = data[list(range(12))]
        assert epochs_of(images) == [0] * 12
        assert epochs_of(data[3][0]) == [0]
    assert data.epoch == 0


def test_other_seeds_and_epochs_give_other_images():
    a, b = GeneratedDataset(network(), ipc=1), GeneratedDataset(network(), ipc=1, seed=1)
    first = a[list(range(10))][0]
    assert not torch.equal(first, b[list(range(10))][0])
    assert not torch.equal(first, a[list(range(10))][0])
    a.set_epoch(0)
    assert torch.equal(first, a[list(range(10))][0])


def test_looking_never_moves_training():
    data = GeneratedDataset(echo(), ipc=4)
    assert [epochs_of(data[3][0])[0] for _ in range(3)] == [0, 1, 2]
    assert data.epoch == 0
    loader = DataLoader(data, batch_size=4)
    for epoch in range(3):
        for images, _ in loader:
            data[0], data[7]
            assert epochs_of(images) == [epoch] * 4
    assert epochs_of(data[3][0]) == [3]
    data.set_epoch(8)
    assert epochs_of(data[3][0]) == [8]


def test_set_epoch_is_the_next_pass():
    data = GeneratedDataset(echo(), ipc=4)
    loader = DataLoader(data, batch_size=5, shuffle=True)
    seen = []
    for epoch in (4, None, 1, 1, None):
        if epoch is not None:
            data.set_epoch(epoch)
        seen.append({e for images, _ in loader for e in epochs_of(images)})
    assert seen == [{4}, {5}, {1}, {1}, {2}]
    assert data.epoch == 2


@pytest.mark.parametrize("epoch", [-1, 1.5, True, "3", 2**63])
def test_no_epoch(epoch):
    with pytest.raises(ArgumentError, match="epoch"):
        GeneratedDataset(echo(), ipc=1).set_epoch(epoch)


def test_a_clone_has_an_epoch_of_its_own_and_shares_weights():
    data = GeneratedDataset(network(), ipc=1)
    data[list(range(10))], data[list(range(10))], data[0]
    twin = data.clone()
    assert (data.epoch, twin.epoch) == (1, 0)
    weights, same = next(data.generator.parameters()), next(twin.generator.parameters())
    assert weights.data_ptr() == same.data_ptr()
    twin.set_epoch(7)
    assert data.epoch == 1


def test_a_state_resumes_with_the_next_pass():
    data = GeneratedDataset(echo(), ipc=4, seed=3)
    loader = DataLoader(data, batch_size=4)
    for _ in range(2):
        list(loader)
    data[0]
    state = json.loads(json.dumps(data.state_dict()))
    fresh = GeneratedDataset(echo(), ipc=4, seed=3)
    fresh.load_state_dict(state)
    assert {e for images, _ in DataLoader(fresh, batch_size=4) for e in epochs_of(images, seed=3)} == {2}
    assert epochs_of(fresh[0][0], seed=3) == [1]
    assert epochs_of(fresh[1][0], seed=3) == [0]


def test_a_state_before_the_first_pass_is_the_first_pass():
    state = GeneratedDataset(echo(), ipc=4).state_dict()
    data = GeneratedDataset(echo(), ipc=4)
    data.load_state_dict(state)
    assert set(epochs_of(data[[0, 1]][0])) == {0}


@pytest.mark.parametrize(("name", "value"), [("epoch", -5), ("epoch", "x"), ("base", 2**63), ("epoch", 1.5)])
def test_a_state_without_an_epoch_is_refused(name, value):
    data = GeneratedDataset(echo(), ipc=1)
    with pytest.raises(ArgumentError, match=f"{name} of the state"):
        data.load_state_dict({**data.state_dict(), name: value})


@pytest.mark.parametrize("looks", [None, [1], {"a": 1}, {"0": -5}, {"0": 1.5}, {"0": True}, {"-1": 2}])
def test_a_state_of_other_looks_is_refused_and_changes_nothing(looks):
    data = GeneratedDataset(echo(), ipc=1)
    with pytest.raises(ArgumentError, match="looks of the state"):
        data.load_state_dict({**data.state_dict(), "epoch": 3, "looks": looks})
    assert data.epoch == 0


def test_a_state_of_another_seed_is_refused():
    data = GeneratedDataset(echo(), ipc=4, seed=3)
    with pytest.raises(ArgumentError, match=r"seed 0.*seed 3"):
        data.load_state_dict(GeneratedDataset(echo(), ipc=4).state_dict())
    with pytest.raises(ArgumentError, match="lacks base, epoch, looks"):
        data.load_state_dict({"seed": 3})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_pickle_is_the_same_dataset(copied):
    data = GeneratedDataset(network(), ipc=2, seed=4, output="normalized", transform=Normalize((0.1,), (0.2,)))
    loader = data.loader(20, shuffle=False)
    next(iter(loader))
    twin = copied(data)
    assert repr(twin) == repr(data)
    a, b = data[list(range(20))], twin[list(range(20))]
    assert torch.equal(a[0], b[0])
    assert (data.epoch, twin.epoch) == (1, 1)
    twin.set_epoch(5)
    assert data.epoch == 1


def test_a_million_images_per_class_cost_nothing():
    generator = network()
    small = len(pickle.dumps(GeneratedDataset(generator, ipc=1)))
    start = time.process_time()
    data = GeneratedDataset(generator, ipc=1_000_000)
    assert time.process_time() - start < 1  # making ten million of anything in Python takes longer
    assert len(data) == 10_000_000
    assert data._clock._memory.nbytes <= 2**21 + 24
    assert len(pickle.dumps(data)) < small + 100
    assert data[9_999_999][1] == 9
    assert len(data.targets) == 10_000_000
    with pytest.raises(ArgumentError, match="targets"):
        _ = GeneratedDataset(generator, ipc=10**9).targets


def random_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_neither_read_nor_touched(workers):
    generator = network()

    def run():
        data = GeneratedDataset(generator, ipc=2)
        loader = data.loader(5, seed=1, num_workers=workers, multiprocessing_context="fork" if workers else None)
        passes = [torch.cat([images for images, _ in loader]) for _ in range(2)]
        return [*passes, data[3][0], data[[1, 2]][0], data.clone()[1][0], data.targets]

    before = random_states()
    first = run()
    assert random_states() == before
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    torch.random.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))


def test_the_source_is_left_as_it_was():
    generator = network().train()
    data = GeneratedDataset(generator, ipc=1)
    assert generator.training
    assert all(p.requires_grad for p in generator.parameters())
    assert not any(m.training for m in data.generator.modules())
    assert not any(p.requires_grad for p in data.generator.parameters())
    pairs = list(zip(generator.parameters(), data.generator.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    before = data[0][0].clone()
    data.set_epoch(0)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1)
    assert not torch.equal(data[0][0], before)  # it follows a source that learns


def test_items_serve_in_autograd_and_in_place():
    data = GeneratedDataset(table())
    for image in (data[3][0], data[[3]][0], data.__getitems__([3])[0][0]):
        assert not image.requires_grad
        assert not image.is_inference()
        weight = torch.ones((), requires_grad=True)
        (image * weight).square().sum().backward()
        assert float(weight.grad) == pytest.approx(2 * 4 * 0.25)
        image.zero_()
    assert data[3][0].mean() == 0.5  # the table itself is untouched


def test_autocast_and_inference_mode_of_the_loop_change_nothing():
    data = GeneratedDataset(network(), ipc=2, draw="fixed")
    plain, _ = data[list(range(20))]
    index = torch.arange(20)
    assert torch.equal(plain, data.generator.draw(latents.latents(0, 0, index, 8), index)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(data[list(range(20))][0], plain)
    with torch.inference_mode():
        assert torch.equal(data[list(range(20))][0], plain)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(data[list(range(20))][0], plain)
    finally:
        torch.set_default_dtype(torch.float32)


# Samplers and splits.


def test_random_split_shares_the_epochs():
    data = GeneratedDataset(echo(), ipc=10)
    train, valid = random_split(data, [20, 10], generator=torch.Generator().manual_seed(0))
    for epoch in range(3):
        for part in (train, valid):
            assert {e for images, _ in DataLoader(part, batch_size=4) for e in epochs_of(images)} == {epoch}


def test_a_subset_with_tensor_indices():
    part = Subset(GeneratedDataset(echo(), ipc=4), torch.arange(2, 8))
    for epoch in range(2):
        images, _ = next(iter(DataLoader(part, batch_size=6)))
        assert index_of(images).tolist() == list(range(2, 8))
        assert epochs_of(images) == [epoch] * 6


def test_weighted_sampling_repeats_an_image_only_within_a_batch():
    data = GeneratedDataset(echo(), ipc=4)
    weights = torch.tensor([1.0, 2.0, 4.0])[data.targets]
    sampler = WeightedRandomSampler(weights, 60, generator=torch.Generator().manual_seed(0))
    seen = set()
    for images, _ in DataLoader(data, batch_size=6, sampler=sampler):
        draws = set(zip(epochs_of(images), index_of(images).tolist(), strict=True))
        assert not draws & seen
        seen |= draws
    assert all(epoch >= 0 for epoch, _ in seen)


# ds.loader.


def test_the_loader_is_a_standard_one_that_yields_whole_tensors():
    data = GeneratedDataset(network(), ipc=2)
    loader = data.loader(6, shuffle=False)
    assert isinstance(loader, DataLoader)
    assert len(loader) == 4
    assert [len(images) for images, _ in loader] == [6, 6, 6, 2]
    assert len(data.loader(6, drop_last=True)) == 3
    images, targets = next(iter(loader))
    assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert targets.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_loader_gives_what_a_plain_one_gives():
    data = GeneratedDataset(network(), ipc=2)
    fast, plain = data.loader(6, shuffle=False), DataLoader(data.clone(), batch_size=6)
    for _ in range(3):
        for a, b in zip(fast, plain, strict=True):
            assert torch.equal(a[1], b[1])
            assert (a[0] - b[0]).abs().max() < 1e-5


def test_the_order_of_a_loader_follows_its_seed():
    def orders(seed):
        loader = GeneratedDataset(echo(), ipc=20).loader(9, seed=seed)
        return [[i for images, _ in loader for i in index_of(images).tolist()] for _ in range(2)]

    first = orders(1)
    assert orders(1) == first
    assert orders(2) != first
    assert first[0] != first[1]
    assert all(sorted(order) == list(range(60)) for order in first)


def test_a_loader_takes_a_generator_or_a_sampler():
    data = GeneratedDataset(echo(), ipc=4)
    a, b = (data.loader(12, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(index_of(next(iter(a))[0]), index_of(next(iter(b))[0]))
    (images, _), *rest = data.loader(5, sampler=[7, 3, 3])
    assert index_of(images).tolist() == [7, 3, 3]
    assert not rest


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_no_batch_size(size):
    with pytest.raises(ArgumentError, match="batch_size"):
        GeneratedDataset(echo(), ipc=4).loader(size)


def test_a_sampler_of_batches_in_a_plain_loader_is_the_same():
    data = GeneratedDataset(echo(), ipc=4)
    order = BatchSampler(RandomSampler(data, generator=torch.Generator().manual_seed(0)), 4, False)
    loader = DataLoader(data, batch_size=None, sampler=order)
    assert [{e for images, _ in loader for e in epochs_of(images)} for _ in range(2)] == [{0}, {1}]


# Outputs and transforms.


def test_normalized():
    data, plain = (
        GeneratedDataset(network((3, 8, 8)), ipc=1, draw="fixed", output=o) for o in ("normalized", "tensor")
    )
    expected = (plain[3][0] - 0.4) / 0.2
    assert torch.allclose(data[3][0], expected, atol=1e-6)
    assert torch.allclose(data[[3]][0][0], expected, atol=1e-5)
    assert torch.allclose(plain.normalize(plain[3][0]), expected, atol=1e-6)
    assert torch.allclose(plain.normalize(plain[[3]][0])[0], expected, atol=1e-5)


def test_normalize_is_per_channel_and_leaves_its_argument():
    normalize = pickle.loads(pickle.dumps(Normalize((0.0, 0.5), (1.0, 0.25))))
    images = torch.full((2, 2, 3, 3), 0.75, dtype=torch.float64)
    result = normalize(images)
    assert result.dtype == torch.float64
    assert result[1, 0, 0, 0] == 0.75
    assert result[1, 1, 0, 0] == 1
    assert (images == 0.75).all()


@pytest.mark.parametrize("images", [torch.zeros(1, 4, 4, dtype=torch.uint8), np.zeros((1, 4, 4)), torch.zeros(3, 4, 4)])
def test_normalize_refuses_what_it_would_spoil(images):
    with pytest.raises(ArgumentError, match="normalize was given"):
        Normalize((0.5,), (0.5,))(images)


def test_uint8_rounds():
    data = GeneratedDataset(table(rows=6), output="uint8")
    images, _ = data[[0, 1, 5]]
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [0, round(255 / 6), round(255 * 5 / 6)]
    assert data[5][0].dtype == torch.uint8


@pytest.mark.parametrize(("shape", "mode"), [((1, 5, 7), "L"), ((3, 5, 7), "RGB")])
def test_pil(shape, mode):
    data = GeneratedDataset(table(shape=shape), output="pil")
    for image in (data[3][0], data.__getitems__([3])[0][0]):
        assert (image.mode, image.size) == (mode, (7, 5))
        assert np.asarray(image).flatten()[0] == 128


def test_pil_needs_one_or_three_channels():
    with pytest.raises(ArgumentError, match="these have 2"):
        GeneratedDataset(table(shape=(2, 4, 4)), output="pil")


def test_pil_does_not_make_a_batch_unless_a_transform_does():
    data = GeneratedDataset(table(), output="pil")
    with pytest.raises(ArgumentError, match="cannot be stacked"):
        data[[0, 1]]
    data.transform = lambda image: torch.tensor(np.asarray(image))
    assert data[[0, 3]][0][:, 0, 0].tolist() == [0, 128]
    with pytest.raises(ArgumentError, match="batch_transform"):
        GeneratedDataset(table(), output="pil", batch_transform=torch.flatten)


@pytest.mark.parametrize("output", ["uint8", "pil"])
def test_clipping_is_said_once(output):
    generator = table(value_range=(-0.5, 1.5))
    generator.table[0], generator.table[1] = -0.4, 1.3
    with pytest.warns(UserWarning, match=r"-0\.5 to 1\.5.*clips"):
        data = GeneratedDataset(generator, output=output)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [int(np.asarray(data[i][0]).flatten()[0]) for i in (0, 1)] == [0, 255]
        GeneratedDataset(generator)[0]


def test_transforms_are_per_image_on_both_paths():
    def transform(image):
        assert image.shape == (1, 1, 5)
        return image[..., 4] * 10

    data = GeneratedDataset(echo(), ipc=4, transform=transform, target_transform=lambda t: t + 100)
    assert data[5][0].item() == 50
    assert data[5][1] == 102
    assert [(x.item(), t) for x, t in data.__getitems__([4, 5])] == [(40, 101), (50, 102)]
    images, targets = next(iter(data.loader(3, shuffle=False)))
    assert images.flatten().tolist() == [0, 10, 20]
    assert targets.tolist() == [100, 101, 102]
    images, targets = next(iter(DataLoader(data, batch_size=3)))
    assert images.flatten().tolist() == [0, 10, 20]
    assert targets.tolist() == [100, 101, 102]


def test_a_batch_transform_sees_each_batch_once_in_the_output_form_before_transform():
    shapes = []

    def flip(images):
        shapes.append(tuple(images.shape))
        assert images.dtype == torch.uint8
        return 255 - images

    data = GeneratedDataset(
        table(), output="uint8", batch_transform=flip, transform=lambda image: image.to(torch.int64) + 1000
    )
    assert [int(x.flatten()[0]) for x, _ in data.__getitems__([0, 3])] == [1255, 1127]
    assert data[[0, 3]][0][:, 0, 0, 0].tolist() == [1255, 1127]
    assert int(data[3][0].flatten()[0]) == 1127
    assert shapes == [(2, 1, 2, 2), (2, 1, 2, 2), (1, 1, 2, 2)]


# Refusals.


@pytest.mark.parametrize("ipc", [0, -1, 1.0, 2.5, True, "10", 2**41, float("nan")])
def test_no_ipc(ipc):
    with pytest.raises(ArgumentError, match=r"ipc is .* from 1 to 109,951,162,777"):
        GeneratedDataset(network(), ipc=ipc)


def test_a_stage_may_be_a_numpy_integer():
    data = GeneratedDataset(join([network(), network()], RECIPE, "dim"), 1, stage=np.int64(1))
    assert data.generator.stages == 1


def test_a_seed_of_sample_is_a_whole_number():
    with pytest.raises(ArgumentError, match=r"seed is 1\.5"):
        network().sample([1], seed=1.5)


def test_ipc_may_be_a_numpy_integer():
    data = GeneratedDataset(network(), ipc=np.int32(3))
    assert len(data) == 30
    assert type(data.ipc) is int


def test_unlimited_images_need_an_ipc():
    with pytest.raises(ArgumentError, match="ipc=10"):
        GeneratedDataset(network())


def test_ipc_beyond_a_table():
    assert len(GeneratedDataset(table(rows=6, classes=3), ipc=2)) == 6
    with pytest.raises(ArgumentError, match=r"6 images of 3 classes.* from 1 to 2"):
        GeneratedDataset(table(rows=6, classes=3), ipc=3)
    with pytest.raises(ArgumentError, match=r"2 images of 3 classes.*Leave ipc out"):
        GeneratedDataset(table(rows=6, classes=3, stages=(2, 4)), ipc=1, stage=1)


def test_an_ipc_that_is_not_of_each_class_is_refused():
    made = table(rows=7, labels=torch.tensor([0, 1, 2, 0, 0, 0, 0]))
    assert len(GeneratedDataset(made, ipc=1)) == 3
    assert len(GeneratedDataset(made)) == 7
    for use in (GeneratedDataset, lambda source, ipc: train("mlp", source, ipc=ipc)):
        with pytest.raises(ArgumentError, match=r"first 6 images of .* are not 2 of each class.*Leave ipc out"):
            use(made, ipc=2)


@pytest.mark.parametrize(
    "arguments",
    [{"draw": "frsh"}, {"draw": None}, {"output": "tensors"}, {"seed": 1.5}, {"seed": None}, {"stage": "1"}],
)
def test_other_arguments(arguments):
    name = next(iter(arguments))
    with pytest.raises(ArgumentError, match=f"{name} is"):
        GeneratedDataset(network(), ipc=1, **arguments)


def test_a_misspelt_output_is_mended():
    with pytest.raises(ArgumentError, match="Did you mean tensor"):
        GeneratedDataset(network(), ipc=1, output="tensr")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_where_there_is_none():
    with pytest.raises(DeviceError, match=r'cuda was asked for.*device="cpu"'):
        GeneratedDataset(network(), ipc=1, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "", 3.5])
def test_no_device(device):
    with pytest.raises(DeviceError, match="no device called"):
        GeneratedDataset(network(), ipc=1, device=device)


def test_a_poisoned_generator_is_announced():
    with pytest.warns(UserWarning, match="poisoned"):
        GeneratedDataset(echo(flags=("poisoned",)), ipc=1)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(DimdataError):
        GeneratedDataset(tmp_path / "nothing", ipc=1)


# On a GPU.

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
def test_a_gpu_draws_whole_batches():
    generator = network((3, 32, 32))
    data, there = GeneratedDataset(generator, ipc=5), GeneratedDataset(generator, ipc=5, device="cuda")
    assert next(generator.parameters()).device.type == "cpu"
    for a, b in zip(data.loader(16, seed=0), there.loader(16, seed=0), strict=True):
        assert b[0].is_cuda
        assert b[1].is_cuda
        assert torch.equal(a[1], b[1].cpu())
        assert (a[0] - b[0].cpu()).abs().max() < 2e-3  # convolutions in TF32
    assert there[3][0].is_cuda
    assert torch.equal(there.targets, data.targets)
    assert there.normalize(there[3][0]).is_cuda


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_gpu_in_a_worker_is_refused_with_two_ways_out(context):
    data = GeneratedDataset(echo(), ipc=5, device="cuda")
    with pytest.raises(DeviceError, match=r"num_workers=0.*device=.cpu"):
        data.loader(16, num_workers=2)
    with pytest.raises(DeviceError, match=r"worker process[\s\S]*num_workers=0"):
        next(iter(DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=context)))
