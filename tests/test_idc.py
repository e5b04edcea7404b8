"""Gradient matching on sheets of smaller images, on the bundled digits."""

import pytest
import torch
import torch.nn.functional as F

from dimdata import artifact
from dimdata.dataset import GeneratedDataset
from dimdata.distill.config import make_config
from dimdata.distill.idc import IDC, IdcConfig
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.generators.table import TableGenerator, enlarged, table_generator
from dimdata.real import RealData, load_real, random_real
from dimdata.recipe import Leg, Recipe
from dimdata.students.train import accuracy, train

ENGINE = Engine.of("cpu", "fp32", "off")
RECIPE = {"legs": [{"epochs": 40, "batch_size": 40, "lr": 0.05}]}
SETTINGS = {
    "ipc": 1,
    "student": "convnet1-w16",
    "real_batch": 16,
    "net_batch": 40,
    "net_steps": 2,
    "inner": 4,
    "lr": 1.0,
    "recipe": RECIPE,
}


def method(steps=10, seed=0, **settings):
    return IDC(make_config(IdcConfig, {**SETTINGS, **settings}), load_real("digits"), ENGINE, seed, steps)


def take(idc, first, last):
    (phase,) = idc.phases()
    return [float(phase.step(step)["match"]) for step in range(first, last)]


def sheets(factor=2, rows=20, **changes):
    images = torch.rand(rows, 1, 8, 8)
    facts = {"classes": tuple("0123456789"), "mean": (0.5,), "std": (0.25,)}
    recipe = Recipe(legs=(Leg(epochs=1, batch_size=10),))
    return table_generator(images, factor=factor, recipe=recipe, **facts, **changes)


def test_a_sheet_is_drawn_tile_by_tile_under_its_own_label():
    generator = sheets()
    assert generator.images == 80
    images, labels = generator.draw(torch.empty(80, 0), torch.arange(80))
    assert labels.tolist() == list(range(10)) * 8
    for slot in range(8):
        sheet, tile = divmod(slot, 4)
        row, column = divmod(tile, 2)
        corner = generator.table[sheet * 10 + 3, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        expected = F.interpolate(corner[None], size=(8, 8), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(images[slot * 10 + 3], expected)


def test_a_table_of_sheets_is_stored_cut_and_joined(tmp_path):
    generator = sheets()
    read = artifact.load(artifact.save(generator, tmp_path / "generator"))
    index = torch.arange(80)
    assert torch.equal(read.draw(torch.empty(80, 0), index)[0], generator.draw(torch.empty(80, 0), index)[0])
    assert read.nbytes == 20 * 64 * 4, "bytes are those of the sheets"
    both = TableGenerator.joined([generator, sheets()], generator.recipe, "pdd")
    assert both.config.stages == (80, 80)
    part = both.view(stage=1)
    assert torch.equal(part.table, generator.table)
    assert len(GeneratedDataset(both, stage=1)) == 80


def test_sheets_that_do_not_fit_are_refused():
    with pytest.raises(FormatError, match="divide both sides"):
        sheets(factor=3)
    with pytest.raises(FormatError, match="does not fill sheets"):
        sheets(rows=15)
    with pytest.raises(FormatError, match="without stored labels"):
        sheets(labels=torch.zeros(80, dtype=torch.int64))


def test_enlarging_has_gradients():
    table = torch.rand(3, 1, 8, 8, requires_grad=True)
    enlarged(table, torch.tensor([0, 3, 1]), 2).sum().backward()
    touched = table.grad[1, 0] != 0
    assert touched[4:, 4:].all()
    assert touched.sum() == 16


def test_the_start_is_made_of_real_images_of_the_right_class():
    """Tiles, enlarged again, are nearer to images of their own class than to the average image."""
    idc = method(ipc=2)
    generator = idc.generator()
    images, labels = generator.draw(torch.empty(80, 0), torch.arange(80))
    real = idc.real.train
    small = F.avg_pool2d(real.images.float() / 255, 2)
    for row in (0, 7, 33, 79):
        own = F.interpolate(small[real.labels == labels[row]], size=(8, 8), mode="bilinear", align_corners=False)
        assert (own - images[row]).abs().amax((1, 2, 3)).min() < 1e-3, "float16"


def test_learned_sheets_beat_random_real_images_of_equal_bytes():
    idc = method(steps=24)
    real = idc.real
    take(idc, 0, 24)
    learned = idc.generator()
    scores = {"learned": [], "random": []}
    for seed in range(2):
        for name, source in (("learned", learned), ("random", random_real(real, 1, seed, learned.recipe))):
            network = train("convnet1-w16", source, seed=seed, engine=ENGINE).network
            scores[name].append(accuracy(network, real.test.images, real.test.labels, real.mean, real.std, ENGINE))
    assert min(scores["learned"]) > max(scores["random"]), scores


def test_the_distance_of_the_gradients_falls():
    idc = method(momentum=0.0, net_steps=0, augment="", inner=100, lr=0.3)
    (phase,) = idc.phases()
    losses = [float(phase.step(0)["match"]) for _ in range(8)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("cut", [2, 4, 5])  # within the life of a network, at its end, and after it
def test_resumed_is_bit_identical(cut):
    whole = method()
    losses = take(whole, 0, 7)
    first = method()
    take(first, 0, cut)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = method()
    second.load_state_dict(state)
    assert take(second, cut, 7) == losses[cut:]
    assert torch.equal(second.table, whole.table)


def test_networks_are_trained_and_replaced():
    """Trained by plain SGD on real images and their labels, after each step; replaced where a life ends."""
    idc = method(inner=2, net_steps=3, net_augment="none")
    (phase,) = idc.phases()
    held = []
    for step in range(3):
        phase.step(step)
        held.append(idc.held)
    assert held == [0, 0, 1]
    network = idc.source.network(1)
    sgd = torch.optim.SGD(network.parameters(), lr=idc.config.net_lr, momentum=0.9, weight_decay=5e-4)
    for number in range(6, 9):
        images, labels = idc.net_batches.at(number)
        sgd.zero_grad()
        F.cross_entropy(network(idc.normalize(images)), labels).backward()
        sgd.step()
    for bare, trained in zip(network.parameters(), idc.network.parameters(), strict=True):
        torch.testing.assert_close(bare, trained, atol=1e-6, rtol=0)


def test_learned_images_can_take_turns():
    idc = method(ipc=2, learned_batch=4, momentum=0.0)
    before = idc.table.detach().clone()
    take(idc, 0, 1)
    moved = (idc.table.detach() != before).flatten(1).any(1)
    assert moved[:10].all()
    assert not moved[10:].any(), "4 tiles are one sheet"


def staged(**settings):
    """Progressive IDC in its second stage."""
    over = {"base": "idc", "stages": 2, "networks": 1, "age": 4, "settings": SETTINGS | {"ipc": 4} | settings}
    pdd = PDD(make_config(PddConfig, over), load_real("digits"), ENGINE, 0, 8)
    pdd._advance()
    return pdd


@pytest.mark.parametrize("factor", [1, 2])
def test_a_later_stage_learns_beside_the_images_before_as_they_are_drawn(factor):
    idc = staged(factor=factor).base
    generator = idc.earlier.generator
    index = torch.arange(generator.images)
    images, labels = generator.draw(torch.empty(len(index), 0), index)
    own = 2 * factor**2
    learned = idc._learned(0, 3)
    assert len(learned) == 2 * own
    assert torch.equal(learned[own:], idc.normalize(images[labels == 3]))
    assert torch.equal(learned[:own], staged(factor=factor, union=False).base._learned(0, 3))
    before = idc.before.clone()
    table = idc.table.detach().clone()
    take(idc, 0, 1)
    assert torch.equal(idc.before, before)
    assert not torch.equal(idc.table, table)


def test_stages_start_from_the_sheets_that_the_base_by_itself_starts_from():
    pdd = PDD(
        make_config(
            PddConfig, {"base": "idc", "stages": 2, "networks": 1, "age": 4, "settings": SETTINGS | {"ipc": 4}}
        ),
        load_real("digits"),
        ENGINE,
        0,
        8,
    )
    first = pdd.base.table.detach().clone()
    pdd._advance()
    assert torch.equal(torch.cat([first, pdd.base.table.detach()]), method(ipc=4).table.detach())


def test_turns_are_shared_with_the_images_before():
    idc = staged(learned_batch=4).base  # 8 images of a class in either stage
    found = [idc._learned(step, 7) for step in range(4)]
    assert [len(images) for images in found] == [4] * 4
    one, two = (torch.cat([images[part] for images in found]) for part in (slice(2), slice(2, 4)))
    whole = staged().base._learned(0, 7)
    assert torch.equal(one, whole[:8])
    assert torch.equal(two, whole[8:])


def test_a_later_stage_resumed_is_bit_identical():
    whole = staged()
    for step in range(4):
        whole.base._step(step)
    first = staged()
    first.base._step(0)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = PDD(first.config, first.real, ENGINE, 0, 8)
    second.load_state_dict(state)
    for step in range(1, 4):
        second.base._step(step)
    assert torch.equal(second.base.table, whole.base.table)


def test_bad_settings_are_refused():
    for settings in ({"factor": 0}, {"inner": 0}, {"net_lr": 0.0}, {"learned_batch": -1}):
        with pytest.raises(FormatError):
            make_config(IdcConfig, settings)
    with pytest.raises(ArgumentError, match="8x8 cannot be divided into 3 tiles"):
        method(factor=3)
    images, labels = torch.zeros(20, 1, 9, 9, dtype=torch.uint8), torch.arange(20) % 2
    odd = RealData.from_arrays(images, labels)
    with pytest.raises(ArgumentError, match="9x9"):
        IDC(make_config(IdcConfig, SETTINGS), odd, ENGINE, 0, 10)
    with pytest.raises(ArgumentError, match="mlp has no convolutions"):
        method(student="mlp", matched="convolutions")


def test_the_gradients_of_convolutions_alone_can_be_matched():
    convolutions, everything = method(matched="convolutions"), method()
    assert [weight.ndim for weight in convolutions.matched] == [4]
    assert len(everything.matched) == len(list(everything.network.parameters())) > 1
    assert 0 < take(convolutions, 0, 1)[0] < take(everything, 0, 1)[0], "both begin alike; fewer terms are less"


def test_the_network_can_be_trained_on_mixed_images():
    plain, mixed = method(net_augment="none"), method(net_augment="cutmix:1")
    take(plain, 0, 1)
    take(mixed, 0, 1)
    assert torch.equal(plain.table, mixed.table), "the first step of the images comes before the network's"
    one, two = plain.network.state_dict(), mixed.network.state_dict()
    assert not all(torch.equal(one[name], two[name]) for name in one)
    assert all(tensor.isfinite().all() for tensor in two.values())
