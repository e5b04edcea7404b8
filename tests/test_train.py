"""Training follows the recipe to the letter, touches nothing else, and learns."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dimdata import latents
from dimdata.dataset import GeneratedDataset
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, DimdataError, FormatError, NotFoundError
from dimdata.generators.base import Generator
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.recipe import Leg, Recipe, Start
from dimdata.spec import Spec
from dimdata.students import compiling, make_student
from dimdata.students.augment import parse
from dimdata.students.source import InitLaw
from dimdata.students.train import accuracy, lr_at, train

CPU = Engine.of("cpu", "fp32", "off")
SHAPE = (1, 8, 8)
CLASSES = ("a", "b", "c", "d")
MEAN, STD = (0.4,), (0.3,)
SMALL = "convnet2-w8"


def recipe(*legs: Leg, **fields: object) -> Recipe:
    return Recipe(legs=legs, **fields)  # type: ignore[arg-type]


PLAIN = recipe(Leg(epochs=1, batch_size=4, shuffle=False, momentum=0.0, weight_decay=0.0, lr=0.1))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Noisy images of four classes, in the order of a table."""
    index = torch.arange(count)
    plain = latents.uniform(latents.fold(77), index % len(CLASSES), 64)
    noise = latents.normal(latents.fold(seed), index, 64)
    return (plain + 0.2 * noise).view(count, *SHAPE)


def table(count: int = 12, of: Recipe = PLAIN, **fields: object) -> TableGenerator:
    return table_generator(pictures(count), classes=CLASSES, mean=MEAN, std=STD, recipe=of, **fields)  # type: ignore[arg-type]


def network_generator(of: Recipe = PLAIN) -> NetworkGenerator:
    spec = Spec(
        kind="network",
        method="dim",
        dataset="toy",
        classes=CLASSES,
        image_shape=SHAPE,
        mean=MEAN,
        std=STD,
        latent=4,
        options={"name": "subpixel", "width": 8, "mid": 8, "stem": 4},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NetworkGenerator(spec, of).eval()


def fresh(seed: int = 0) -> nn.Module:
    return make_student(SMALL, SHAPE, len(CLASSES), seed)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def by_hand(
    batches: list[tuple[Tensor, Tensor]], rates: list[float], network: nn.Module | None = None, **settings: object
) -> nn.Module:
    """Train as a reader of the recipe would: images in [0, 1], one after another."""
    network = fresh() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, **settings)  # type: ignore[arg-type]
    for (images, targets), rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(network((images - MEAN[0]) / STD[0]), targets).backward()
        optimizer.step()
    return network


def in_order(generator: Generator, batch: int, epochs: int = 1) -> list[tuple[Tensor, Tensor]]:
    parts = torch.arange(int(generator.images or 0)).split(batch)
    return [generator.draw(torch.empty(len(part), 0), part) for _ in range(epochs) for part in parts]


def close(first: nn.Module, second: nn.Module, tolerance: float = 1e-5) -> bool:
    return bool(torch.allclose(weights(first), weights(second), atol=tolerance))


def test_plain_sgd_in_stored_order() -> None:
    generator = table()
    network = fresh()
    result = train(network, generator, engine=CPU)
    assert result.network is network
    assert close(network, by_hand(in_order(generator, 4), [0.1] * 3))
    assert (result.steps, result.images_drawn, result.distinct_images) == (3, 12, 12)
    assert not network.training


def test_epochs_and_a_device_by_its_name() -> None:
    source = table()
    result = train(SMALL, source, recipe=PLAIN, epochs=3, engine="cpu")
    assert result.steps == 3 * train(SMALL, source, recipe=PLAIN, engine=CPU).steps
    for wrong in ({"epochs": 0}, {"engine": "gpu"}):
        with pytest.raises(DimdataError):
            train(SMALL, source, recipe=PLAIN, **wrong)


def test_momentum_nesterov_decay_and_one_cycle() -> None:
    leg = Leg(epochs=2, batch_size=4, shuffle=False, lr=0.2, schedule="onecycle", warmup=0.5, nesterov=True)
    network = fresh()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=6, pct_start=0.5)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step() if len(rates) < 6 else None
    generator = table(of=recipe(leg))
    hand = by_hand(in_order(generator, 4, 2), rates, momentum=0.9, nesterov=True, weight_decay=5e-4)
    train(network, generator, engine=CPU)
    assert close(network, hand)


def test_adamw() -> None:
    leg = Leg(epochs=1, batch_size=4, shuffle=False, optimizer="adamw", lr=0.01, weight_decay=0.1)
    generator = table(of=recipe(leg))
    # Without norms: before one, gradients of biases are rounding errors, which Adam blows up.
    hand, network = (make_student("convnet2-w8-none", SHAPE, 4) for _ in range(2))
    optimizer = torch.optim.AdamW(hand.parameters(), lr=0.01, weight_decay=0.1)
    for images, targets in in_order(generator, 4):
        optimizer.zero_grad()
        F.cross_entropy(hand((images - MEAN[0]) / STD[0]), targets).backward()
        optimizer.step()
    train(network, generator, engine=CPU)
    assert close(network, hand)


def test_stored_step_sizes_are_plain_descent() -> None:
    leg = Leg(epochs=1, batch_size=4, shuffle=False, lr=9.0, step_sizes="lrs")  # momentum and decay do not count
    generator = table(of=recipe(leg, tensors=("lrs",)))
    sizes = [0.3, 0.02, 0.11]
    generator.recipe_tensors = {"lrs": torch.tensor(sizes)}
    network = fresh()
    train(network, generator, engine=CPU)
    assert close(network, by_hand(in_order(generator, 4), sizes))


@pytest.mark.parametrize("tensors", [{}, {"lrs": torch.ones(2)}, {"lrs": torch.tensor([0.1, 0.0, 0.1])}])
def test_step_sizes_that_do_not_fit_are_refused(tensors: dict[str, Tensor]) -> None:
    generator = table(of=recipe(Leg(epochs=1, batch_size=4, step_sizes="lrs"), tensors=("lrs",)))
    generator.recipe_tensors = tensors
    with pytest.raises(FormatError, match="lrs"):
        train(fresh(), generator, engine=CPU)


def test_a_stored_start_is_the_start() -> None:
    of = recipe(*PLAIN.legs, start=Start(law="stored", student="lenet"))
    stored = make_student("lenet", SHAPE, len(CLASSES), seed=9)
    generator = table(of=of)
    generator.recipe_tensors = {f"start.{name}": tensor for name, tensor in stored.state_dict().items()}
    result = train("lenet", generator, engine=CPU, seed=4)
    assert close(result.network, by_hand(in_order(generator, 4), [0.1] * 3, network=stored))


def test_the_law_of_the_start_is_followed() -> None:
    of = recipe(*PLAIN.legs, start=Start(law="orthogonal"))
    result = train(SMALL, table(of=of), engine=CPU, seed=4, limit_steps=0)
    assert close(result.network, InitLaw(SMALL, SHAPE, 4, "orthogonal").network(4), 0)
    assert result.steps == 0
    assert math.isnan(result.loss)


def test_soft_targets() -> None:
    soft = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    generator = table(targets=soft)
    network = fresh()
    train(network, generator, engine=CPU)
    assert close(network, by_hand(list(zip(pictures(12).split(4), soft.split(4), strict=True)), [0.1] * 3))


def test_ragged_and_small_batches() -> None:
    leg = PLAIN.legs[0]
    generator, network = table(11), fresh()
    result = train(network, generator, engine=CPU)
    assert close(network, by_hand(in_order(generator, 4), [0.1] * 3))
    assert result.images_drawn == 11
    network = fresh()
    result = train(network, generator, recipe=recipe(replace(leg, batch_size=500, epochs=2)), engine=CPU)
    assert close(network, by_hand(in_order(generator, 11, 2), [0.1] * 2))
    assert (result.steps, result.images_drawn, result.distinct_images) == (2, 22, 11)


def test_steps_wrap_around_epochs() -> None:
    generator, network = table(11), fresh()
    result = train(network, generator, recipe=recipe(replace(PLAIN.legs[0], epochs=None, steps=5)), engine=CPU)
    assert close(network, by_hand(in_order(generator, 4, 2)[:5], [0.1] * 5))
    assert (result.steps, result.images_drawn) == (5, 19)


def test_fresh_draws_are_those_of_the_dataset_and_epochs_count_over_legs() -> None:
    generator = network_generator()
    leg = PLAIN.legs[0]
    of = recipe(leg, replace(leg, epochs=2, lr=0.05), replace(leg, epochs=None, steps=1))
    network = fresh()
    result = train(network, generator, ipc=3, recipe=of, seed=5, engine=CPU)
    dataset = GeneratedDataset(generator, 3, seed=5)
    batches = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        batches += list(dataset.loader(4, shuffle=False))
    assert close(network, by_hand(batches[:10], [0.1] * 3 + [0.05] * 6 + [0.1]))
    assert (result.steps, result.images_drawn, result.distinct_images) == (10, 40, 40)


def test_a_fixed_draw_repeats() -> None:
    generator, network = network_generator(), fresh()
    result = train(network, generator, ipc=3, recipe=recipe(replace(PLAIN.legs[0], epochs=3)), draw="fixed", engine=CPU)
    batches = list(GeneratedDataset(generator, 3, draw="fixed").loader(4, shuffle=False))
    assert close(network, by_hand(batches * 3, [0.1] * 9))
    assert result.distinct_images == 12


def test_shuffling_shows_each_image_once_an_epoch_in_an_order_of_the_seed() -> None:
    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)
            self.seen: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.seen.append(images.detach().clone())
            return self.linear(images.flatten(1))

    def order(seed: int) -> list[int]:
        network = Watch()
        of = recipe(replace(PLAIN.legs[0], epochs=2, shuffle=True))
        train(network, generator, recipe=of, seed=seed, engine=CPU)
        shown = torch.cat(network.seen[1:]) * STD[0] + MEAN[0]  # the first look checks that the network fits
        return [int((generator.table - image).abs().flatten(1).sum(1).argmin()) for image in shown]

    generator = table(11)
    first = order(0)
    assert sorted(first[:11]) == sorted(first[11:]) == list(range(11))
    assert first[:11] != first[11:]
    assert first[:11] != list(range(11))
    assert order(0) == first
    assert order(1) != first


def test_augmentation_is_that_of_the_leg() -> None:
    generator = table()
    of = recipe(replace(PLAIN.legs[0], augment="flip+crop"))
    first = train(fresh(), generator, recipe=of, engine=CPU).network
    assert not close(first, by_hand(in_order(generator, 4), [0.1] * 3))
    assert close(first, train(fresh(), generator, recipe=of, engine=CPU).network, 0)
    assert not close(first, train(fresh(), generator, recipe=of, engine=CPU, seed=1).network)
    single = recipe(replace(PLAIN.legs[0], augment="flip", dialect="one"))
    both = recipe(replace(PLAIN.legs[0], augment="flip", dialect="each"))
    one, each = (train(fresh(), generator, recipe=r, engine=CPU).network for r in (single, both))
    assert close(one, each, 0)
    with pytest.raises(NotFoundError, match="flop"):
        train(fresh(), generator, recipe=recipe(replace(PLAIN.legs[0], augment="flop")), engine=CPU)


def test_stages_follow_the_legs_and_momentum_carries_over() -> None:
    legs = [Leg(stage=k, epochs=1, batch_size=4, shuffle=False, lr=0.05, weight_decay=0.0) for k in (1, 2, 3)]
    generator = table(16, of=recipe(*legs), stages=(4, 8, 4))
    network = fresh()
    done: list[int] = []
    result = train(network, generator, engine=CPU, on_leg=lambda number, net: done.append(number))
    batches = in_order(generator, 4)
    assert close(network, by_hand(batches[:1] + batches[:3] + batches[:4], [0.05] * 8, momentum=0.9))
    assert done == [1, 2, 3]
    assert (result.steps, result.images_drawn, result.distinct_images) == (8, 32, 16)
    prefix = train(fresh(), generator, stage=2, engine=CPU)
    assert (prefix.steps, prefix.distinct_images) == (4, 12)
    longer = train(fresh(), generator, stage=2, epochs=4, engine=CPU)
    assert longer.steps == train(fresh(), generator.view(stage=2), epochs=4, engine=CPU).steps == 2 * 1 + 2 * 3
    whole = train(fresh(), generator, ipc=4, engine=CPU)  # stage 1 has one image of each class
    assert whole.steps == 1 + 3 + 4
    with pytest.raises(ArgumentError, match="IPC 2 is a part of the 16 images of 3 stages"):
        train(fresh(), generator, ipc=2, engine=CPU)
    with pytest.raises(ArgumentError, match="3 stages"):
        train(fresh(), generator, stage=4, engine=CPU)
    with pytest.raises(ArgumentError, match="no leg"):
        train(fresh(), generator, recipe=recipe(legs[2]), stage=1, engine=CPU)


def test_a_limit_stops_early_on_the_same_path() -> None:
    of = recipe(replace(PLAIN.legs[0], epochs=4, schedule="cosine", shuffle=True))
    seen: list[Tensor] = []
    train(fresh(), table(), recipe=of, engine=CPU, on_step=lambda step, total, loss: seen.append(loss))
    calls: list[tuple[int, int]] = []
    short = train(
        fresh(),
        table(),
        recipe=of,
        engine=CPU,
        limit_steps=5,
        on_step=lambda step, total, loss: calls.append((step, total)),
    )
    assert calls == [(k, 5) for k in range(1, 6)]
    assert short.loss == pytest.approx(float(seen[4]), rel=1e-6)
    assert len(seen) == 12
    with pytest.raises(ArgumentError, match="limit_steps"):
        train(fresh(), table(), engine=CPU, limit_steps=-1)


def test_equal_seeds_are_bit_identical_and_no_global_state_is_touched() -> None:
    def dropping(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, num_classes))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(dropping, network_generator(), ipc=2, engine=CPU, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = train(dropping, network_generator(), ipc=2, engine=CPU, seed=3)
    other = train(dropping, network_generator(), ipc=2, engine=CPU, seed=4)
    assert close(first.network, again.network, 0)
    assert not close(first.network, other.network)
    assert first.info.student.endswith("<locals>.dropping")


def test_a_dataset_keeps_its_own_settings() -> None:
    generator = network_generator()
    dataset = GeneratedDataset(generator, 3, seed=5, draw="fixed")
    dataset[0]
    first = train(fresh(), dataset, engine=CPU).network
    assert close(first, train(fresh(), generator, ipc=3, seed=5, draw="fixed", engine=CPU).network, 0)
    with pytest.raises(ArgumentError, match="ipc"):
        train(fresh(), dataset, ipc=3, engine=CPU)
    with pytest.raises(ArgumentError, match="transforms"):
        train(fresh(), GeneratedDataset(generator, 3, transform=lambda image: image), engine=CPU)


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match="4 classes"):
        train(make_student(SMALL, SHAPE, 3), table(), engine=CPU)
    with pytest.raises(ArgumentError, match="cannot take"):
        train(make_student(SMALL, (3, 8, 8), 4), table(), engine=CPU)
    with pytest.raises(ArgumentError, match="without limit"):
        train(fresh(), network_generator(), engine=CPU)
    with pytest.raises(NotFoundError, match="convnet2"):
        train("convnet2-x", table(), engine=CPU)


@pytest.mark.parametrize("total", [8, 100, 1000])
@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.5])
def test_one_cycle_is_torchs(total: int, warmup: float) -> None:
    leg = Leg(steps=total, batch_size=1, lr=0.3, schedule="onecycle", warmup=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=total, pct_start=warmup)
    for step in range(total):
        assert lr_at(leg, step, total) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            cycle.step()


def test_other_schedules() -> None:
    leg = Leg(steps=10, batch_size=1, lr=0.8)
    assert [lr_at(leg, k, 10) for k in range(10)] == [0.8] * 10
    steps = replace(leg, schedule="step", lr_drops=(0.5, 0.8), lr_factor=0.1)
    assert [lr_at(steps, k, 10) for k in (0, 4, 5, 7, 8, 9)] == pytest.approx([0.8, 0.8, 0.08, 0.08, 0.008, 0.008])
    cosine = replace(leg, schedule="cosine")
    assert lr_at(cosine, 0, 10) == 0.8
    assert lr_at(cosine, 5, 10) == pytest.approx(0.4)
    assert 0 < lr_at(cosine, 9, 10) < 0.03
    assert lr_at(replace(leg, schedule="onecycle"), 0, 1) == 0.8
    for total in (2, 3, 5):  # no phase divides by zero
        for warmup in (0.0, 0.2, 0.4, 0.5, 0.9):
            one = replace(leg, schedule="onecycle", warmup=warmup)
            assert all(0 < lr_at(one, k, total) <= 0.8 for k in range(total))


def test_students_learn() -> None:
    test, labels = pictures(200, seed=1), torch.arange(200) % 4
    of = recipe(Leg(epochs=30, batch_size=16, lr=0.05, schedule="onecycle", augment="cutout"))
    for student in ("convnet2-w16", "resnet10-w16"):  # group statistics and batch statistics
        result = train(student, table(64), recipe=of, engine=CPU)
        assert accuracy(result.network, test, labels, MEAN, STD, CPU) > 0.9
        assert result.loss < 0.5
    assert result.info.generator.startswith("wrapped-")
    assert result.info.classes == CLASSES


def test_accuracy_is_a_share_in_eval_mode() -> None:
    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            return torch.stack([-images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)

    images = torch.tensor([0, 255, 0, 255, 255], dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    labels = torch.tensor([0, 1, 1, 1, 0])
    network = First()
    assert accuracy(network, images, labels, (0.5,), (0.5,), CPU, batch=2) == 3 / 5
    assert network.training
    assert accuracy(network, images.float() / 255, labels, (0.5,), (0.5,), CPU) == 3 / 5
    with pytest.raises(ArgumentError, match="labels"):
        accuracy(network, images, labels[:4], MEAN, STD, CPU)


def test_batch_statistics_do_not_see_test_images() -> None:
    network = make_student("resnet10-w16", SHAPE, 4)
    images, labels = torch.rand(50, *SHAPE), torch.arange(50) % 4
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scores = {accuracy(network, images, labels, MEAN, STD, CPU, batch=size) for size in (1, 7, 50)}
    assert len(scores) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_siamese_augmentation_meets_the_trainers() -> None:
    """The k-th image of two batches is treated alike under one key, whatever the images are."""
    augment = parse("crop+cutout+flip")
    images = pictures(8)
    assert torch.allclose(augment(images, 5) * 2, augment(images * 2, 5))


@pytest.mark.slow
def test_compiled_training_agrees_with_eager(monkeypatch) -> None:
    """Both batch sizes of an epoch are compiled; the result is the same up to rounding."""
    monkeypatch.setattr(compiling, "COMPILE_FROM", 1)
    of = recipe(replace(PLAIN.legs[0], epochs=3, augment="flip"))
    eager = train(fresh(), table(11), recipe=of, engine=CPU).network
    compiled = train(fresh(), table(11), recipe=of, engine=Engine.of("cpu", "fp32", "on")).network
    assert close(eager, compiled, 1e-4)
    images, labels = pictures(11), torch.arange(11) % 4
    engines = (CPU, Engine.of("cpu", "fp32", "on"))
    assert len({accuracy(eager, images, labels, MEAN, STD, engine, batch=4) for engine in engines}) == 1


@pytest.mark.parametrize("student", [5, None, [SMALL]])
def test_what_is_no_student_is_refused(student: object) -> None:
    with pytest.raises(ArgumentError, match="neither a name nor a factory"):
        train(student, table(), engine=CPU)  # type: ignore[arg-type]


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("width")


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Fails(), "KeyError"),
        (Pair(), "maps images to a tuple"),
        (nn.Linear(8, 4), r"shape \(2, 1, 8, 4\)"),
        (nn.Conv2d(3, 4, 3), "RuntimeError"),
    ],
)
def test_networks_that_do_not_fit_are_refused_in_a_sentence(network: nn.Module, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        train(network, table(), engine=CPU)


def test_a_factory_that_raises_is_named() -> None:
    def broken(image_shape: object, num_classes: int) -> nn.Module:
        raise OSError("no weights here")

    def tells(image_shape: object, num_classes: int) -> nn.Module:
        raise NotFoundError("No weights are known.", "Fetch them.")

    with pytest.raises(ArgumentError, match=r"broken cannot make .*OSError: no weights here"):
        train(broken, table(), engine=CPU)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="No weights are known"):
        train(tells, table(), engine=CPU)  # type: ignore[arg-type]


def test_a_mistake_in_a_later_leg_is_found_before_the_first_begins() -> None:
    legs = (PLAIN.legs[0], replace(PLAIN.legs[0], augment="flipp"))
    steps: list[int] = []
    with pytest.raises(NotFoundError, match="flipp"):
        train(fresh(), table(of=recipe(*legs)), engine=CPU, on_step=lambda done, *_: steps.append(done))
    assert not steps


def pooled() -> nn.Module:
    """Batch norm on one value of each channel, as deep networks have it on small images."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 4)
    )


def test_a_batch_of_one_image_that_batch_norm_cannot_take_is_refused_before_training() -> None:
    legs = (PLAIN.legs[0], replace(PLAIN.legs[0], batch_size=11))  # 12 images: the last batch of the second leg
    steps: list[int] = []
    with pytest.raises(ArgumentError, match="12 images in batches of 11"):
        train(pooled(), table(of=recipe(*legs)), engine=CPU, on_step=lambda done, *_: steps.append(done))
    assert not steps
    assert train(pooled(), table(), engine=CPU).steps == 3
    assert train(pooled(), table(of=recipe(legs[1])), engine=CPU, limit_steps=1).steps == 1  # never comes to it


def test_the_look_at_a_batch_of_one_changes_nothing() -> None:
    """A batch norm that sees several pixels takes one image, and its statistics are those of training alone."""
    legs = recipe(replace(PLAIN.legs[0], batch_size=11))
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    train(network, table(of=legs), engine=CPU)
    assert network[1].num_batches_tracked == 2
