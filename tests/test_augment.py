"""Augmentation: pure in its key, differentiable, and what it says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dimdata import latents
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, NotFoundError
from dimdata.generators.table import table_generator
from dimdata.recipe import Leg, Recipe, Start
from dimdata.students import train as training
from dimdata.students.augment import AUGMENTATIONS, DIALECTS, Augment, Operation, Step, _parameters, parse
from dimdata.students.train import train

NAMES = [name for name in AUGMENTATIONS if isinstance(AUGMENTATIONS[name], Operation)]
CPU = Engine.of("cpu", "fp32", "off")


def batch(count: int = 64, shape: tuple[int, int, int] = (3, 16, 16)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_one_key_treats_two_batches_alike(name: str) -> None:
    augment, images = parse(name), batch()
    before = torch.get_rng_state()
    first = augment(images, key=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, augment(images.clone(), key=7))
    assert not torch.equal(first, augment(images, key=8))
    assert not torch.equal(first, images)
    assert first.shape == images.shape
    assert first.dtype == images.dtype


@pytest.mark.parametrize("name", NAMES)
def test_parameters_belong_to_the_number_of_an_image(name: str) -> None:
    augment, images = parse(name), batch()
    whole = augment(images, key=3)
    part = augment(images[20:30], key=3, index=torch.arange(20, 30))
    assert torch.allclose(part, whole[20:30], atol=1e-6)
    alike = augment(images[:1].expand(8, -1, -1, -1), key=3, index=torch.zeros(8, dtype=torch.int64))
    assert torch.allclose(alike, alike[:1].expand_as(alike), atol=1e-6)
    own = augment(images[:1].expand(64, -1, -1, -1), key=3)
    assert not torch.allclose(own, own[:1].expand_as(own))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right(name: str) -> None:
    images = batch(2, (2, 6, 8)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: parse(name)(x, key=5), images)


def test_all_together_on_odd_shapes() -> None:
    for shape in ((1, 8, 8), (3, 28, 28), (1, 9, 13)):
        out = parse("+".join(NAMES))(batch(5, shape), key=1)
        assert out.shape == (5, *shape)
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("index", [None, torch.arange(3, 8)], ids=["by place", "by number"])
def test_together_each_does_what_it_does_alone(index: torch.Tensor | None) -> None:
    out = images = batch(5)
    for name in NAMES:
        out = parse(name)(out, 7, index)
    assert torch.equal(parse("+".join(NAMES))(images, 7, index), out)


def test_more_operations_launch_no_more_for_their_random_values() -> None:
    """On a GPU, what small batches cost is launches."""

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.integer = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            self.integer += isinstance(out, torch.Tensor) and out.dtype == torch.int64
            return out

    def launches(text: str) -> int:
        images, augment = torch.zeros(4, 3, 8, 8, device="meta"), parse(text)
        _parameters.cache_clear()
        with Count() as count:
            augment(images, key=1)
        return count.integer

    launches("color")  # which keeps what is the same for all keys
    alone = launches("color")  # no integers of its own
    assert alone > 20
    assert launches("+".join(["color"] * 3)) == alone + 2  # adding each key to the index


def test_flip_mirrors_half_of_the_images() -> None:
    images = batch(400)
    out = parse("flip")(images, key=0)
    kept = (out == images).flatten(1).all(1)
    assert torch.equal(out[~kept], images[~kept].flip(3))
    assert 150 < int(kept.sum()) < 250


def test_crop_moves_by_at_most_an_eighth_and_fills_with_blanks() -> None:
    images = batch(600, (1, 16, 8))
    out = parse("crop")(images, key=0)
    padded = torch.nn.functional.pad(images, (1, 1, 2, 2))
    seen = set()
    for image, moved in zip(padded, out, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(3)
            if torch.equal(image[:, top : top + 16, left : left + 8], moved)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crop_in_half_precision_stays_within_the_image(dtype: torch.dtype) -> None:
    """A random value near 1 is rounded to 1 there."""
    images = torch.rand(20_000, 1, 8, 8).to(dtype)
    assert parse("crop")(images, 0).shape == images.shape


def test_cutout_blanks_a_rectangle_of_at_most_half() -> None:
    images = batch(300)
    out = parse("cutout")(images, key=0)
    blank = out[:, 0] == 0
    assert torch.equal(out[:, 0][~blank], images[:, 0][~blank])
    height, width = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), height * width)
    assert int(height.max()) == int(width.max()) == 8
    assert int(height.min()) >= 4  # the centre is always inside


def test_color_keeps_order_within_an_image() -> None:
    images = batch(50, (1, 16, 16))
    out = parse("color")(images, key=0)
    assert torch.equal(out.flatten(1).argsort(1), images.flatten(1).argsort(1))
    contrast = out.flatten(1).std(1) / images.flatten(1).std(1)
    assert 0.5 <= float(contrast.min()) < 0.7
    assert 1.3 < float(contrast.max()) <= 1.5
    shift = (out - images).mean((1, 2, 3))
    assert -0.5 <= float(shift.min()) < -0.3
    assert 0.3 < float(shift.max()) <= 0.5


def test_the_dialect_one_takes_one_operation_a_batch() -> None:
    images = batch()
    alone = [parse(name) for name in ("flip", "crop", "color")]
    augment = parse("flip+crop+color", dialect="one")
    chosen = []
    for key in range(40):
        out = augment(images, key)
        fits = [place for place, single in enumerate(alone) if torch.equal(out, single(images, key))]
        assert len(fits) == 1
        chosen += fits
    assert set(chosen) == {0, 1, 2}


def test_the_dialect_idc_takes_one_of_the_others() -> None:
    images = batch()
    augment = parse("flip+color+crop+scale+rotate+cutout", dialect="idc")
    alone = [parse(f"flip+color+{name}+cutout") for name in ("crop", "scale", "rotate")]
    chosen = []
    for key in range(30):
        out = augment(images, key)
        fits = [place for place, single in enumerate(alone) if torch.equal(out, single(images, key))]
        assert len(fits) == 1
        chosen += fits
    assert set(chosen) == {0, 1, 2}
    for text in ("color+crop", "color+crop+cutout", "flip"):  # what DiM uses means the same in both
        assert torch.equal(parse(text, dialect="idc")(images, key=3), parse(text)(images, key=3))


@pytest.mark.parametrize("name", NAMES)
def test_a_written_strength_is_followed(name: str) -> None:
    images, does = batch(), AUGMENTATIONS[name]
    usual = parse(name)(images, key=2)
    assert torch.equal(parse(f"{name}:{does.strength!r}")(images, key=2), usual)
    none = parse(f"{name}:{does.least!r}")(images, key=2)
    assert torch.allclose(none, images, atol=1e-5)  # each operation has a strength that does nothing: its least
    some = (does.least + does.strength) / 2
    assert not torch.equal(parse(f"{name}:{some!r}")(images, key=2), usual)
    assert torch.isfinite(parse(f"{name}:{does.most!r}")(images, key=2)).all()


def test_strengths_are_in_the_units_they_say() -> None:
    images = batch(300)
    kept = (parse("flip:0.25")(images, key=0) == images).flatten(1).all(1)
    assert 0.68 < float(kept.float().mean()) < 0.82
    blank = parse("cutout:0.25")(images, key=0)[:, 0] == 0
    assert int(blank.any(2).sum(1).max()) == 4  # of 16 pixels
    right = torch.zeros(64, 1, 9, 9)
    right[:, :, 4, 8] = 1
    turned = parse("rotate:90")(right, key=0).amax(3).argmax(2)[:, 0]  # the row it comes to lie in
    assert int(turned.min()) <= 1
    assert int(turned.max()) >= 7


@pytest.mark.parametrize("text", ["crop:1.5", "crop:", "crop:a", "rotate:-3", "scale:0.5", "flip:nan", "cutmix:2"])
def test_strengths_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match=text.split(":")[0]):
        parse(text, mixing=True)


def test_cutmix_pastes_a_rectangle_and_mixes_the_labels_by_its_area() -> None:
    count, side, classes = 12, 16, 4
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(-1, 3, side, side).contiguous()
    labels = torch.arange(count) % classes
    shares = []
    for key in range(60):
        mixed, targets = parse("cutmix:1", mixing=True).mix(images, labels, classes, key)
        assert torch.allclose(targets.sum(1), torch.ones(count))
        other = mixed != images
        moved = other.any(3).any(2).any(1)
        for place in torch.nonzero(moved).flatten().tolist():
            rows, columns = other[place, 0].any(1), other[place, 0].any(0)
            area = int(rows.sum()) * int(columns.sum())
            assert int(other[place].sum()) == 3 * area  # a full rectangle, in every channel
            values = mixed[place][other[place]].unique()
            assert len(values) == 1
            partner = int(values[0]) - 1
            share = area / side**2
            expected = (1 - share) * F.one_hot(labels[place], classes) + share * F.one_hot(labels[partner], classes)
            assert torch.allclose(targets[place], expected, atol=1e-6)
            shares.append(share)
        assert torch.equal(targets[~moved].argmax(1), labels[~moved])
    assert min(shares) < 0.1
    assert max(shares) > 0.6


def test_cutmix_is_a_function_of_its_key_and_takes_soft_targets() -> None:
    images, labels = batch(), torch.arange(64) % 5
    before = torch.get_rng_state()
    augment = parse("cutmix", mixing=True)
    runs = [augment.mix(images, labels, 5, key) for key in range(40)]
    assert torch.equal(torch.get_rng_state(), before)
    mixed = [not torch.equal(out, images) for out, _ in runs]
    assert 10 < sum(mixed) < 30  # half of the batches
    for key, (out, targets) in enumerate(runs):
        again, soft = augment.mix(images.clone(), F.one_hot(labels, 5).float(), 5, key)
        assert torch.equal(out, again)
        assert torch.equal(targets, soft)
        assert targets.shape == (64, 5)  # of one kind whether mixed or not
    first, second, *_ = (out for (out, _), was in zip(runs, mixed, strict=True) if was)
    assert not torch.equal(first, second)
    none = parse("flip", mixing=True)
    assert none.mix(images, labels, 5, key=1) == (images, labels)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_cutmix_comes_last_in_any_dialect(dialect: str) -> None:
    images, labels = batch(), torch.arange(64) % 5
    both, alone = parse("cutmix:1+crop+flip", dialect, mixing=True), parse("crop+flip", dialect)
    mix = parse("cutmix:1", mixing=True).mix
    for key in range(6):
        assert torch.equal(both(images, key), alone(images, key))
        out, targets = both.mix(both(images, key), labels, 5, key)
        expected, mixed = mix(alone(images, key), labels, 5, key)
        assert torch.equal(out, expected)
        assert torch.equal(targets, mixed)


def test_labels_are_mixed_only_where_there_are_labels() -> None:
    with pytest.raises(ArgumentError, match="cutmix mixes labels"):
        parse("flip+cutmix")


@pytest.mark.parametrize("soft", [False, True])
def test_training_follows_cutmix(soft: bool) -> None:
    """A reader of the recipe gets the same network: the loss of mixed targets is the mixed loss of both labels."""
    count, classes, seed = 20, 4, 3
    images = batch(count, (1, 8, 8)) - 0.1
    labels = F.one_hot(torch.arange(count) % classes, classes).float()
    if soft:
        labels = (labels + torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))).softmax(1)
    leg = Leg(epochs=2, batch_size=8, shuffle=False, momentum=0.0, weight_decay=0.0, augment="flip+cutmix")
    facts = {"classes": tuple("abcd"), "mean": (0.4,), "std": (0.3,), "recipe": Recipe(legs=(leg,))}
    generator = table_generator(images, **facts, **({"targets": labels} if soft else {}))  # type: ignore[arg-type]

    def linear() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
        nn.init.constant_(network[1].weight, 0.01)
        nn.init.zeros_(network[1].bias)
        return network

    trained = train(linear(), generator, seed=seed, engine=CPU).network
    hand = linear()
    optimizer = torch.optim.SGD(hand.parameters(), lr=leg.lr)
    augment, mixed = parse(leg.augment, mixing=True), 0
    for step, part in enumerate([*torch.arange(count).split(8)] * 2):
        key = latents.fold(training._AUGMENT, seed, 0, step)
        shown, targets = augment.mix(augment((images[part] - 0.4) / 0.3, key), labels[part], classes, key)
        mixed += not torch.equal(targets, labels[part])
        logs = hand(shown).log_softmax(1)
        optimizer.zero_grad()
        (-(targets * logs).sum(1)).mean().backward()
        optimizer.step()
    assert 0 < mixed < 6
    for mine, other in zip(hand.parameters(), trained.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_a_recipe_says_what_it_does() -> None:
    leg = Leg(epochs=1, batch_size=5, schedule="step", lr_drops=(0.5, 0.75), augment="crop:0.25+cutmix", dialect="idc")
    text = Recipe(legs=(leg,)).describe()
    assert "lr 0.01 step (x0.1 at 50 %, 75 %)" in text
    assert "augment crop:0.25+cutmix (idc)" in text
    assert "onecycle (rising for 30 %)" in Leg(epochs=1, batch_size=5, schedule="onecycle", warmup=0.3).describe()
    assert "onecycle, momentum" in Leg(epochs=1, batch_size=5, schedule="onecycle").describe()
    assert Recipe(legs=(leg,), start=Start(law="xavier")).describe() == f"from xavier weights: {text}"


def test_each_is_one_after_the_other() -> None:
    images = batch()
    both = parse("flip+crop")(images, key=2)
    assert torch.equal(both, parse("crop")(parse("flip")(images, key=2), key=2))


def test_none_changes_nothing() -> None:
    images = batch()
    for text in ("", "none"):
        assert parse(text)(images, key=1) is images
        assert parse(text, dialect="one")(images, key=1) is images


def test_unknown_words_are_refused() -> None:
    with pytest.raises(NotFoundError, match="flip"):
        parse("flipp+crop")
    with pytest.raises(ArgumentError, match="each, one, idc"):
        parse("flip", dialect="some")


def test_two_batches_under_one_key_share_their_parameters() -> None:
    augment, images, key = parse("crop+flip+cutout"), batch(), 2**63 + 12_345
    before = _parameters.cache_info()
    with torch.inference_mode():
        first = augment(images, key)
    seen = images.clone().requires_grad_()
    second = augment(seen, key)
    second.square().sum().backward()
    after = _parameters.cache_info()
    assert torch.equal(first, second)
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
    assert torch.equal(first, augment(images, key, index=torch.arange(len(images))))
    assert not torch.equal(augment(images[:32], key), augment(images[:32], key + 1))


def test_an_operation_may_change_its_values() -> None:
    def greedy(images: torch.Tensor, values: torch.Tensor, strength: float) -> torch.Tensor:
        shift = values.clone()
        values.zero_()
        return images + shift[:, 0, None, None, None]

    augment = Augment((Step("greedy", Operation(1, greedy, 1.0, 0.0, 1.0), 1.0, latents.stream("greedy")),))
    images = batch()
    first = augment(images, key=4)
    assert not torch.equal(first, images)
    assert torch.equal(augment(images, key=4), first)
