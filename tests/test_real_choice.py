"""Real data: choices among images, baselines and batches."""

from __future__ import annotations

import pytest
import torch

from dimdata.errors import ArgumentError, DataError
from dimdata.real import (
    Batches,
    RealData,
    Split,
    all_real,
    balanced,
    class_mean,
    distinct_real,
    kmeans_real,
    load_real,
    random_real,
    subset,
    validation_split,
)
from dimdata.recipe import Leg, Recipe

RECIPE = Recipe(legs=(Leg(epochs=1, batch_size=8),))


def made(counts: tuple[int, ...], side: int = 4) -> Split:
    """Images whose first two pixels are their number, in a fixed mixed order of classes."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.zeros(len(labels), 1, side, side, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) // 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) % 256
    return Split(images, labels, len(counts))


def numbers(images: torch.Tensor) -> torch.Tensor:
    """The numbers that `made` wrote into images, from uint8 or from floats in [0, 1]."""
    pixels = images.double() * (1 if images.dtype == torch.uint8 else 255)
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]).round().long()


# ---------------------------------------------------------------- choices


def test_subset_has_the_order_of_indices() -> None:
    split = made((20, 12, 30))
    chosen = subset(split, 12, seed=1)
    assert chosen.labels.tolist() == [0, 1, 2] * 12
    assert len(numbers(chosen.images).unique()) == 36
    assert torch.equal(split.labels[numbers(chosen.images)], chosen.labels)
    assert torch.equal(subset(split, 5, seed=1).images, chosen.images[:15])
    assert not torch.equal(subset(split, 12, seed=2).images, chosen.images)
    with pytest.raises(ArgumentError, match=r"13 images of each class .* class 1 has 12"):
        subset(split, 13)
    with pytest.raises(ArgumentError):
        subset(split, 0)


def test_balanced_goes_on_where_a_class_runs_out() -> None:
    split = made((20, 3, 30))
    assert balanced(split, 19).counts.tolist() == [8, 3, 8]
    everything = balanced(split, 10**6)
    assert numbers(everything.images).sort().values.tolist() == list(range(53))


def test_validation_split_is_a_stratified_part_of_train() -> None:
    split = made((40, 20, 10, 2))
    real = RealData.from_arrays(split.images, split.labels, test_images=split.images, test_labels=split.labels)
    part = validation_split(real, 0.1)
    assert part.test is not None
    assert part.test.counts.tolist() == [4, 2, 1, 1]
    both = torch.cat([numbers(part.train.images), numbers(part.test.images)])
    assert both.sort().values.tolist() == list(range(72))
    assert torch.equal(split.labels[numbers(part.test.images)], part.test.labels)
    assert (part.mean, part.classes) == (real.mean, real.classes)
    other = validation_split(real, 0.1, seed=1).test
    assert other is not None
    assert not torch.equal(other.images, part.test.images)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="fraction"):
            validation_split(real, fraction)
    with pytest.raises(DataError, match=r"Class 0 .* 1 training image"):
        validation_split(RealData.from_arrays(torch.zeros(3, 5, 5, dtype=torch.uint8), torch.tensor([0, 1, 1])))


def test_choices_leave_the_global_random_state_alone() -> None:
    real = load_real("digits")
    state = torch.random.get_rng_state()
    first = (subset(real.train, 3, 0).labels, Batches(real.train, "cpu", 0, 16).at(0)[0])
    torch.manual_seed(7)
    seeded = torch.random.get_rng_state()
    second = (subset(real.train, 3, 0).labels, Batches(real.train, "cpu", 0, 16).at(0)[0])
    kmeans_real(real, 2, 0, RECIPE)
    assert torch.equal(torch.random.get_rng_state(), seeded)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.random.set_rng_state(state)


# ---------------------------------------------------------------- baselines


def test_baselines_of_real_images() -> None:
    real = load_real("digits")
    index = torch.arange(30)
    table = random_real(real, 3, 0, RECIPE)
    assert (table.spec.method, table.spec.dataset, table.spec.storage) == ("real", "digits", "uint8")
    assert (table.images, table.spec.mean) == (30, real.mean)
    images, labels = table.draw(torch.empty(30, 0), index)
    assert labels.tolist() == list(range(10)) * 3
    assert torch.equal(images, subset(real.train, 3, 0).images / 255)

    some = distinct_real(real, 1290, 0, RECIPE)
    assert some.images == 1290
    assert distinct_real(real, 10**6, 0, RECIPE).images == 1297
    assert torch.equal(some.labels(torch.arange(1290)), balanced(real.train, 1290).labels)

    everything = all_real(real, RECIPE)
    images, labels = everything.draw(torch.empty(1297, 0), torch.arange(1297))
    assert torch.equal(images, real.train.images / 255)
    assert torch.equal(labels, real.train.labels)


def test_class_mean_and_kmeans() -> None:
    real = load_real("digits")
    mean, labels = class_mean(real, RECIPE).draw(torch.empty(10, 0), torch.arange(10))
    own = real.train.images[real.train.labels == 4].double().mean(0) / 255
    assert labels.tolist() == list(range(10))
    assert torch.allclose(mean[4].double(), own, atol=0.5 / 255 + 1e-6)
    one, _ = kmeans_real(real, 1, 0, RECIPE).draw(torch.empty(10, 0), torch.arange(10))
    assert torch.allclose(one, mean, atol=1.01 / 255)

    def spread(table_images: torch.Tensor) -> float:
        """The mean squared distance of training images to the nearest table row of their class."""
        total = 0.0
        for label in range(10):
            points = real.train.images[real.train.labels == label].flatten(1).float() / 255
            total += float(torch.cdist(points, table_images[label::10].flatten(1)).min(1).values.square().sum())
        return total / len(real.train)

    index = torch.arange(50)
    random = random_real(real, 5, 0, RECIPE).draw(torch.empty(50, 0), index)[0]
    table = kmeans_real(real, 5, 0, RECIPE)
    centres, labels = table.draw(torch.empty(50, 0), index)
    assert labels.tolist() == list(range(10)) * 5
    assert spread(centres) < 0.75 * spread(random)
    assert torch.equal(table.table, kmeans_real(real, 5, 0, RECIPE).table)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_every_image_once_before_any_repeats(size: int) -> None:
    split = made((7, 13, 2, 20))
    batches = Batches(split, "cpu", seed=3, batch_size=size)
    seen: dict[int, list[int]] = {k: [] for k in range(4)}
    labels = torch.cat([batches.at(step)[1] for step in range(400 // size)])
    assert torch.equal(labels, torch.arange(len(labels)) % 4)
    for step in range(400 // size):
        images, labels = batches.at(step)
        assert images.dtype == torch.float32
        assert torch.equal(labels, batches.labels_at(step))
        rows = numbers(images)
        assert torch.equal(split.labels[rows], labels)
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            seen[label].append(row)
    for label, count in enumerate((7, 13, 2, 20)):
        passes = [seen[label][i : i + count] for i in range(0, len(seen[label]) - count + 1, count)]
        assert all(len(set(p)) == count for p in passes)
        assert len(passes) >= 4
        assert count < 7 or len({tuple(p) for p in passes}) > 1


def test_batches_are_pure_in_seed_and_step() -> None:
    split = made((7, 1, 20, 300))
    walked = Batches(split, "cpu", seed=0, batch_size=48)
    stored = {step: walked.at(step)[0] for step in range(60)}
    for step in (59, 0, 31, 32, 2, 59):
        walked.matched(torch.arange(9) % 4, step, "a")
        assert torch.equal(walked.at(step)[0], stored[step])
        assert torch.equal(Batches(split, "cpu", seed=0, batch_size=48).at(step)[0], stored[step])
    assert not torch.equal(Batches(split, "cpu", seed=1, batch_size=48).at(0)[0], stored[0])
    far = Batches(split, "cpu", seed=0, batch_size=48)
    assert torch.equal(far.at(10**12)[0], walked.at(10**12)[0])


def test_matched_images_have_the_labels_and_are_others() -> None:
    split = made((500, 500, 500))
    batches = Batches(split, "cpu", seed=0, batch_size=30)
    images, labels = batches.at(4)
    first, same = batches.matched(labels, 4, "a")
    second, _ = batches.matched(labels, 4, "b")
    assert torch.equal(same, labels)
    assert torch.equal(split.labels[numbers(first)], labels)
    for one, other in ((first, images), (second, images), (first, second)):
        assert int((numbers(one) == numbers(other)).sum()) <= 2
    assert len(numbers(first).unique()) == 30
    wild = torch.tensor([2] * 70 + [0] + [2] * 70)  # more of one class than a balanced batch has
    drawn, _ = batches.matched(wild, 9, "a")
    assert torch.equal(split.labels[numbers(drawn)], wild)
    assert len(numbers(drawn[:70]).unique()) == 70
    assert torch.equal(Batches(split, "cpu", 0, 30).matched(wild, 9, "a")[0], drawn)
    assert torch.equal(batches.matched(labels, 4, "a")[0], first)
    walk = [numbers(batches.matched(labels, step, "c")[0]) for step in range(50)]
    assert len(torch.cat(walk).unique()) == 1500  # a whole pass over every class


def test_bad_batches() -> None:
    with pytest.raises(ArgumentError, match="batch size"):
        Batches(made((2, 2)), "cpu", 0, 0)
    with pytest.raises(DataError, match="Class 1 has no image"):
        Batches(Split(made((2, 2)).images[:2], torch.tensor([0, 2])), "cpu", 0, 4)
