"""Generators in stages, and the recipes that walk them."""

import dataclasses
import warnings

import pytest
import torch
from conftest import make_network, make_table, recipe

from dimdata import artifact, latents
from dimdata.cells import plan
from dimdata.dataset import GeneratedDataset
from dimdata.distill.staging import shares, shortened, walk
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.evaluate import evaluate
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.staged import StagedGenerator
from dimdata.generators.table import TableGenerator, table_generator
from dimdata.protocols import protocol
from dimdata.real import load_real, random_real
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec
from dimdata.students.train import train

ENGINE = Engine.of("cpu", "fp32", "off")


def networks(count=3, epochs=7):
    parts = [make_network(seed=seed, image_shape=(1, 8, 8)) for seed in range(count)]
    leg = Leg(epochs=epochs, batch_size=10)
    for part in parts:
        part.recipe = Recipe(legs=(leg,))
    return parts, NetworkGenerator.joined(parts, walk([part.recipe for part in parts], [None] * count), "pdd")


def draw(generator, count):
    index = torch.arange(count)
    return generator.draw(latents.latents(0, 0, index, generator.spec.latent), index)


def test_the_stage_of_an_image_is_its_slot_modulo_the_stages():
    parts, whole = networks()
    images, labels = draw(whole, 70)
    assert labels.tolist() == list(range(10)) * 7
    for slot in range(7):
        rows = slice(slot * 10, slot * 10 + 10)
        alone, _ = draw(parts[slot % 3], 70)
        torch.testing.assert_close(images[rows], alone[rows])


def test_order_and_batch_size_change_nothing():
    _, whole = networks()
    images, _ = draw(whole, 60)
    index = torch.tensor([41, 3, 59, 10])
    few, labels = whole.draw(latents.latents(0, 0, index, 8), index)
    torch.testing.assert_close(few, images[index])
    assert labels.tolist() == [1, 3, 9, 0]


@pytest.mark.parametrize("stage", [1.5, "2", True])
def test_a_stage_is_a_whole_number(stage):
    for generator in (make_table(stages=(10, 10)), networks()[1]):
        with pytest.raises(ArgumentError, match=r"stage is .*; it must be a whole number"):
            generator.view(stage=stage)


def test_a_prefix_of_networks_is_a_generator_and_shares_their_memory():
    parts, whole = networks()
    part = whole.view(stage=2)
    assert part.stages == 2
    assert part.nbytes < whole.nbytes
    images, _ = draw(part, 40)
    for slot in range(4):
        rows = slice(slot * 10, slot * 10 + 10)
        torch.testing.assert_close(images[rows], draw(parts[slot % 2], 40)[0][rows])
    own = {tensor.data_ptr() for tensor in whole.state_dict().values()}
    assert {tensor.data_ptr() for tensor in part.state_dict().values()} <= own
    assert whole.view(stage=3) is whole
    for stage in (0, 4):
        with pytest.raises(ArgumentError, match="3 stages"):
            whole.view(stage=stage)


def test_saved_and_loaded(tmp_path):
    _, whole = networks()
    read = artifact.load(artifact.save(whole, tmp_path / "generator"))
    assert isinstance(read, StagedGenerator)
    torch.testing.assert_close(draw(read, 30)[0], draw(whole, 30)[0])
    assert [leg.stage for leg in read.recipe.legs] == [1, 2, 3]


def test_a_staged_spec_that_fits_nothing_is_refused():
    _, whole = networks(2)
    good = whole.spec.to_json()
    for change in ({"images": 10}, {"latent": 0}, {"storage": "uint8"}, {"options": {"stages": 0, "network": {}}}):
        with pytest.raises(FormatError):
            StagedGenerator(Spec.from_json(good | change), recipe())
    with pytest.raises(FormatError):
        StagedGenerator(Spec.from_json(good | {"options": {"stages": 2}}), recipe())


def test_tables_join_row_by_row_and_a_stage_prefix_is_a_row_prefix():
    parts = [make_table(rows=10 * n, stages=(), seed=n) for n in (1, 2, 3)]
    whole = TableGenerator.joined(parts, recipe(), "pdd")
    assert (whole.stages, whole.images, whole.spec.method) == (3, 60, "pdd")
    assert torch.equal(whole.table, torch.cat([part.table for part in parts]))
    assert torch.equal(whole.view(stage=2).table, whole.table[:30])
    dataset = GeneratedDataset(whole, stage=2)
    assert len(dataset) == 30
    assert dataset.targets.tolist() == list(range(10)) * 3


def test_joined_tables_keep_labels_targets_and_range():
    images, facts = torch.rand(6, 1, 8, 8), {"classes": ("a", "b"), "mean": (0.5,), "std": (0.5,), "recipe": recipe()}
    plain = table_generator(images, **facts)
    labelled = table_generator(images * 3 - 1, labels=torch.tensor([1, 1, 0, 0, 1, 0]), **facts)
    whole = TableGenerator.joined([plain, labelled], recipe(), "pdd")
    assert whole.labels(torch.arange(12)).tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0]
    assert whole.spec.value_range == labelled.spec.value_range
    targets = torch.eye(2).repeat(3, 1) * 0.8 + 0.1
    soft = table_generator(images, targets=targets, **facts)
    both = TableGenerator.joined([soft, soft], recipe(), "pdd")
    assert torch.equal(both.row_targets, torch.cat([targets, targets]))


# --- recipes over stages -----------------------------------------------------------------------------------------


def single(**changes):
    return Recipe(legs=(dataclasses.replace(Leg(epochs=100, batch_size=40), **changes),))


@pytest.mark.parametrize("stages", [2, 3, 5, 7])
@pytest.mark.parametrize(("rows", "batch"), [(20, 256), (20, 32), (70, 32)])
def test_legs_over_stages_take_the_steps_of_one_stage(stages, rows, batch):
    """What a student does on the union in one leg: as many steps as over all stages."""
    images = [rows] * stages
    plain = single(batch_size=batch)
    steps = 100 * -(-sum(images) // batch)
    walked = walk([plain] * stages, images)
    assert [leg.stage for leg in walked.legs] == list(range(1, stages + 1))
    assert sum(leg.steps for leg in walked.legs) == steps
    assert min(leg.steps for leg in walked.legs) >= 1


def test_training_on_stages_takes_the_steps_of_one_stage_and_sees_growing_unions():
    parts = [make_table(rows=20, stages=(), seed=n) for n in range(3)]
    plain = single(epochs=6, batch_size=30)
    together = table_generator(
        torch.cat([part.table for part in parts]),
        classes=parts[0].spec.classes,
        mean=(0.5,),
        std=(0.25,),
        recipe=plain,
    )
    whole = TableGenerator.joined(parts, walk([plain] * 3, [20] * 3), "pdd")
    legs = []
    result = train("convnet1-w8", whole, engine=ENGINE, on_leg=lambda number, network: legs.append(number))
    assert result.steps == train("convnet1-w8", together, engine=ENGINE).steps == 12
    assert legs == [1, 2, 3]
    assert result.distinct_images == 60


def test_unlimited_stages_share_the_epochs():
    assert [leg.epochs for leg in walk([single()] * 3, [None] * 3).legs] == [33, 34, 33]
    assert [leg.steps for leg in walk([single(epochs=None, steps=9)] * 2, [None] * 2).legs] == [4, 5]


@pytest.mark.parametrize("images", [[20] * 4, [None] * 4])
def test_the_last_leg_may_have_a_share_of_its_own(images):
    plain = single(epochs=300, batch_size=30)
    whole, part = walk([plain] * 4, images), walk([plain] * 4, images, last_share=0.5)
    before, after = ([leg.steps or leg.epochs for leg in recipe.legs] for recipe in (whole, part))
    assert sum(before) == sum(after)
    assert after[-1] == sum(after) / 2
    for ours, other in zip(after[:-1], before[:-1], strict=True):
        assert ours / sum(after[:-1]) == pytest.approx(other / sum(before[:-1]), abs=0.01)
    with pytest.raises(ArgumentError, match="for 4 stages"):
        walk([plain] * 4, images, last_share=0.9999)
    assert walk([plain], images[:1], last_share=0.5) == plain


def test_one_stage_keeps_its_recipe():
    assert walk([single()], [20]) == single()


def test_recipes_that_cannot_be_walked_are_refused():
    leg = Leg(epochs=1, batch_size=10)
    with pytest.raises(ArgumentError, match="one leg"):
        walk([Recipe(legs=(leg, leg))] * 2, [10, 10])
    with pytest.raises(ArgumentError, match="1 epochs for 3 stages"):
        walk([Recipe(legs=(leg,))] * 3, [None] * 3)


def test_shares_add_up():
    assert shares(10, [1, 1, 1]) == [3, 4, 3]
    assert shares(6, [1, 2, 3]) == [1, 2, 3]
    assert sum(shares(1001, [1.0] * 7)) == 1001


def test_shortened_keeps_the_proportions():
    walked = walk([single(batch_size=20)] * 2, [20, 20])  # 1 and 2 steps an epoch
    assert [leg.steps for leg in shortened(walked, 9).legs] == [3, 6]
    assert [leg.stage for leg in shortened(walked, 1).legs] == [2]


def test_a_fixed_draw_over_networks_counts_the_images_of_all_legs():
    """An index is drawn from another network as soon as its slot modulo the stages is another."""
    _, whole = networks(epochs=6)
    shown = torch.cat([draw(whole.view(stage=k), 100)[0] for k in (1, 2, 3)]).flatten(1)
    assert len(shown.unique(dim=0)) == 190
    result = train("convnet1-w8", whole, ipc=10, draw="fixed", engine=ENGINE)
    assert result.distinct_images == 190
    assert train("convnet1-w8", whole, ipc=10, draw="fixed", stage=1, engine=ENGINE).distinct_images == 100
    common = {"students": "convnet1-w8", "seeds": 1, "real": load_real("digits"), "baselines": (), "engine": ENGINE}
    (score,) = evaluate(whole, ipc=10, draws="fixed", **common)
    assert (score.distinct, score.ipc_claim, score.budget_text) == (190, False, "600 images")
    with pytest.warns(UserWarning, match="the first of 3 stages"):  # slot 0 is of the first stage in every leg
        assert train("convnet1-w8", whole, ipc=1, draw="fixed", engine=ENGINE).distinct_images == 10


def test_the_ceiling_of_stages_sees_as_many_distinct_images():
    """Its legs go on where the one before ended; begun anew, each would show some again and leave out others."""
    _, whole = networks(epochs=6)
    common = {"students": "convnet1-w8", "seeds": 1, "real": load_real("digits"), "engine": ENGINE}
    for ipc in (3, 10, 40):
        own, real = evaluate(whole, ipc=ipc, baselines="distinct", **common)
        assert (own.what, real.what) == ("generator", "distinct")
        assert own.distinct == own.images_seen == 6 * 10 * ipc
        assert real.images_seen == own.images_seen
        assert real.distinct == min(own.distinct, len(common["real"].train))


def test_fewer_images_per_class_than_stages_are_no_figure_of_the_whole():
    _, whole = networks(epochs=3)
    common = {"students": "convnet1-w8", "seeds": 1, "real": load_real("digits"), "baselines": (), "engine": ENGINE}
    with pytest.raises(ArgumentError, match=r"IPC 2 draws from the first 2 of 3 stages alone.* or stage=2\."):
        evaluate(whole, ipc=2, **common)
    assert [score.ipc for score in evaluate(whole, ipc=2, stage=2, **common)] == [2]
    asked = {"ipc": None, "students": ["mlp"], "draws": "fresh", "seeds": 1, "recipe": None, "epochs": None}
    for generator, budgets in ((whole, [10, 50]), (whole.view(stage=1), [1, 10, 50])):
        cells = plan(generator, protocol=protocol("dimdata"), baselines=[], **asked)
        assert [cell.ipc for cell in cells] == budgets


@pytest.mark.parametrize("kind", ["table", "networks"])
def test_a_prefix_can_be_trained_on_either_way(kind):
    if kind == "table":
        parts = [make_table(rows=10, stages=(), seed=n) for n in range(3)]
        whole = TableGenerator.joined(parts, walk([single(epochs=6)] * 3, [10] * 3), "pdd")
        ipc = None
    else:
        _, whole = networks(epochs=6)
        ipc = 2
    direct = train("convnet1-w8", whole, ipc=ipc, stage=2, engine=ENGINE)
    dataset = train("convnet1-w8", GeneratedDataset(whole, ipc, stage=2), engine=ENGINE)
    assert direct.steps == dataset.steps
    for a, b in zip(direct.network.parameters(), dataset.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("ipc", "words"),
    [
        (1, "1 image per class draws from the first of 3 stages alone; ask for 3 or more, or stage=1"),
        (2, "2 images per class draws from the first 2 of 3 stages alone; ask for 3 or more, or stage=2"),
        (3, ""),
    ],
)
def test_stages_that_are_never_drawn_are_told_once(ipc, words):
    _, whole = networks(epochs=3)
    for use in (GeneratedDataset, lambda generator, ipc: train("convnet1-w8", generator, ipc=ipc, engine=ENGINE)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            use(whole, ipc)
        assert [words in str(each.message) for each in told] == [True] * bool(words)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(whole.view(stage=1), ipc)


def test_evaluation_reports_the_accuracy_after_each_stage(tmp_path):
    from dimdata.report import markdown

    real = load_real("digits")
    plain = single(epochs=40, batch_size=20, lr=0.05)
    parts = [random_real(real, 2, seed, plain) for seed in range(3)]
    whole = TableGenerator.joined(parts, walk([plain] * 3, [20] * 3), "pdd")
    (score,) = evaluate(
        whole,
        students="convnet1-w8",
        seeds=2,
        real=real,
        baselines=(),
        engine=ENGINE,
        output=tmp_path / "rows.jsonl",
    )
    assert len(score.stages) == 3
    assert score.stages[-1] == score.mean
    assert score.stages[0] < score.mean
    alone = train("convnet1-w8", whole, stage=1, engine=ENGINE, seed=0)
    assert alone.steps < score.steps
    header, _, line = markdown([score]).splitlines()
    assert "after each stage" in header
    assert f"{score.stages[0]:.1f} / {score.stages[1]:.1f}" in line.replace("\\", "")
