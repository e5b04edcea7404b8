"""Dataset Distillation in stages, on the bundled digits: learned steps that are walked stage by stage."""

import json
import warnings

import pytest
import torch
from conftest import make_network, make_table

from dimdata import artifact
from dimdata.dataset import GeneratedDataset
from dimdata.distill.config import make_config
from dimdata.distill.dd import DD, DDConfig
from dimdata.distill.method import METHODS
from dimdata.distill.pdd import PDD, PddConfig
from dimdata.distill.run import distill
from dimdata.distill.staging import walk
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, FormatError
from dimdata.evaluate import evaluate
from dimdata.real import load_real
from dimdata.recipe import Leg, Recipe
from dimdata.students.feed import Feed
from dimdata.students.train import train

PLAIN = {"device": "cpu", "precision": "fp32", "compile": "off"}
CPU = Engine.of(*PLAIN.values())
BASE = {
    "student": "mlp",
    "inner_steps": 4,
    "epochs": 2,
    "batch_size": 50,
    "lr": 0.05,
    "lr_sizes": 0.05,
    "step_size": 0.1,
    "begin": "random",
}


def settings(**changed):
    return {"base": "dd", "stages": 2, "networks": 1, "settings": BASE | changed}


def method(steps=12, seed=0, **changed):
    return PDD(make_config(PddConfig, settings(**changed)), load_real("digits"), CPU, seed, steps)


def take(pdd, first, last):
    numbered = [(phase, step) for phase in pdd.phases() for step in range(phase.steps)]
    for phase, step in numbered[first:last]:
        phase.step(step)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_passes_over_all_stages_are_not_what_they_are_for(tmp_path):
    for epochs, told in ((2, "stage by stage, several times each"), (1, None)):
        folder = tmp_path / str(epochs)
        distill("digits", out=folder, method="pdd", settings=settings(epochs=epochs), steps=4, **PLAIN)
        generator = artifact.load(folder / "generator")
        for stage, expected in ((None, told), (1, None)):
            dataset = GeneratedDataset(generator, stage=stage)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                for _ in range(2):
                    list(dataset.loader(10, shuffle=False))
            assert len(found) == (expected is not None)
            assert expected is None or expected in str(found[0].message)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                train("mlp", GeneratedDataset(generator, stage=stage), engine=CPU)


def held(generator):
    return generator.state_dict() | generator.recipe_tensors


def test_a_run_in_stages_teaches_more_with_each(tmp_path):
    folder = distill("digits", out=tmp_path / "run", method="pdd", settings=settings(), steps=120, probes=0, **PLAIN)
    whole = artifact.load(folder)
    assert (whole.spec.method, whole.stages, whole.images) == ("pdd", 2, 40)
    assert [(leg.stage, leg.alone, leg.step_sizes) for leg in whole.recipe.legs] == [
        (1, True, "step_sizes"),
        (2, True, "step_sizes.2"),
    ]
    result = train("mlp", whole, engine=CPU)
    assert (result.steps, result.images_drawn, result.distinct_images) == (8, 80, 40)
    rows = []
    evaluate(whole, real="digits", seeds=1, baselines=("random",), engine=CPU, on_row=rows.append)
    mine, random = rows
    assert mine.stages[1] > mine.stages[0] > random.accuracy + 10
    assert (mine.steps, mine.stage_steps) == (8, (4, 8))
    first = whole.view(stage=1)
    assert first.recipe.tensors.count("step_sizes.2") == 0
    assert first.recipe_tensors.keys() == set(first.recipe.tensors)
    alone = artifact.load(artifact.save(first, tmp_path / "first"))
    (score,) = evaluate(alone, real="digits", seeds=1, baselines=(), engine=CPU)
    assert score.mean == mine.stages[0], "a prefix is a generator by itself"
    assert mine.stage_bytes[1] == whole.nbytes > mine.stage_bytes[0]


def test_every_stage_takes_the_steps_of_the_base_on_its_share_of_the_batches():
    base = make_config(DDConfig, BASE | {"window": 6, "calibrate": [1.0, 0.5]})
    share = DD.for_stages(base, 2)
    assert (share.inner_steps, share.epochs, share.window) == (2, 2, 4)
    config = make_config(PddConfig, settings(calibrate=[1.0, 0.5], default_steps=30))
    assert PDD.default_steps(config) == 2 * (30 + 1), "each stage is calibrated once"


def test_the_first_stage_is_the_base_by_itself():
    pdd = method()
    take(pdd, 0, 6)
    base = DD(make_config(DDConfig, BASE | {"inner_steps": 2}), load_real("digits"), CPU, 0, 6)
    for step in range(6):
        base.phases()[0].step(step)
    assert same(held(pdd.generator()), held(base.generator()))


@pytest.mark.parametrize("start", ["fixed", "random"])
def test_a_later_stage_is_learned_for_networks_at_the_end_of_the_ones_before(start):
    pdd = method(start=start)
    take(pdd, 0, 7)
    first, stage = pdd.done[0], pdd.base
    weights = stage.starts.weights(3, 1)[0]
    trained = train("mlp", first, engine=CPU, seed=0).network
    network = dict(trained.named_parameters())
    alike = all(torch.allclose(weights[name], network[name], atol=1e-6) for name in network)
    assert alike == (start == "fixed"), "from a fixed start there is one such network"
    assert not any(torch.equal(weights[name], value) for name, value in stage.starts.untrained(1)[0].items())
    last = first.recipe_tensors["step_sizes"][-2:].mean().item()
    assert stage.sizes().mean().item() == pytest.approx(max(last / 2, 0.1), rel=0.1)
    whole = pdd.generator()
    assert whole.recipe.start == first.recipe.start
    start_tensors = {name: t for name, t in whole.recipe_tensors.items() if name.startswith("start.")}
    assert same(start_tensors, {n: t for n, t in first.recipe_tensors.items() if n.startswith("start.")})


def test_step_sizes_begin_with_half_the_last_ones_and_never_below_the_configured_one():
    pdd = method()
    take(pdd, 0, 6)
    pdd._reach(1)
    sizes = pdd.done[0].recipe_tensors["step_sizes"]
    for last, begun in ((0.5, 0.25), (0.01, 0.1)):
        sizes[:] = torch.tensor([3.0, 3.0, last, last])
        stage = pdd._base({})
        stage.phases()
        assert stage.sizes().tolist() == pytest.approx([begun] * 4)


def test_stages_begin_with_other_real_images():
    pdd = method()
    real = load_real("digits")
    pdd.base.phases()
    begun = pdd.generator().table.clone()
    take(pdd, 0, 6)
    pdd._reach(1)
    pdd.base.phases()
    later = pdd.base.generator().table
    assert not any(torch.allclose(a, b, atol=1e-3) for a in begun for b in later)
    pixels = real.train.images.float().flatten(1) / 255
    for row, image in enumerate(later):
        near = (pixels - image.flatten()).abs().amax(1)
        assert near.min() < 1e-4, "a real image"
        assert real.train.labels[near.argmin()] == row % 10


@pytest.mark.parametrize("changed", [{}, {"start": "random", "soft": True, "images": 5}, {"window": 3}])
def test_resumed_in_any_stage_is_bit_identical(changed):
    whole = method(**changed)
    take(whole, 0, 12)
    expected = held(whole.generator())
    for cut in (2, 6, 9):
        first, second = method(**changed), method(**changed)
        take(first, 0, cut)
        second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
        take(second, cut, 12)
        assert same(held(second.generator()), expected), cut


def test_batches_that_do_not_hold_every_class_keep_their_labels(tmp_path):
    pdd = method(images=15, inner_steps=2, epochs=1)
    take(pdd, 0, 12)
    whole = artifact.load(artifact.save(pdd.generator(), tmp_path / "out"))
    index = torch.arange(30)
    assert torch.equal(whole.labels(index), index % 10)
    second = whole.view(stage=2, alone=True)
    assert torch.equal(second.labels(torch.arange(15)), (15 + torch.arange(15)) % 10)
    result = train("mlp", whole, engine=CPU)
    assert (result.steps, result.distinct_images) == (2, 30)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stages": 3}, r"4 batches \(inner_steps\) cannot be shared equally among 3 stages"),
        ({"settings": BASE | {"begin": "dd-mnist-fixed"}}, "Stages cannot begin as 'dd-mnist-fixed'"),
        ({"settings": BASE | {"pretrain": {"on": "digits"}}}, "cannot be learned for networks that the run trains"),
        ({"age": 3}, "age is 3, but students of dd walk the stages in learned steps"),
        ({"youngest": 0.5}, "youngest is 0.5"),
        ({"real_steps": 2}, "real_steps is 2"),
        ({"last_share": 0.5}, "last_share is 0.5"),
    ],
)
def test_what_learned_steps_do_not_allow_is_refused_before_the_run(changed, said, tmp_path):
    with pytest.raises(ArgumentError, match=said):
        distill("digits", out=tmp_path / "run", method="pdd", settings=settings() | changed, steps=12, **PLAIN)
    assert not (tmp_path / "run" / "run.json").exists()


def test_dd_is_among_the_methods_that_can_be_staged():
    assert METHODS["dd"].staged()


def test_the_plan_tells_the_networks_that_are_trained_between_the_stages():
    assert method().beside().startswith("Each later stage first trains up to 1 network on the stages before, 4 student")


def test_baselines_of_stages_see_as_many_real_images_as_they_say(monkeypatch):
    pdd = method()
    take(pdd, 0, 12)
    shown = set()
    indices = Feed._indices

    def watched(self):
        for epoch, index in indices(self):
            shown.update(index.tolist())
            yield epoch, index

    monkeypatch.setattr(Feed, "_indices", watched)
    rows = []
    evaluate(pdd.generator(), real="digits", seeds=1, baselines=("all",), engine=CPU, on_row=rows.append)
    shown.clear()
    real = rows[1]
    assert (real.what, real.steps) == ("all", 8)
    evaluate(pdd.generator(), real="digits", seeds=1, baselines=("all",), engine=CPU)
    assert len(shown) > 60, "both legs see images of their own"


def test_tensors_that_a_base_does_not_have_are_refused_in_words(tmp_path):
    recipe = {"legs": [{"epochs": 4, "batch_size": 10}], "tensors": ["start.x"]}
    base = {"ipc": 2, "student": "convnet1-w8", "recipe": recipe}
    stages = {"base": "dm", "stages": 2, "settings": base}
    with pytest.raises(ArgumentError, match="Stages need a recipe of one leg"):
        distill("digits", out=tmp_path / "run", method="pdd", settings=stages, steps=4, **PLAIN)


def test_too_few_real_images_for_a_stage_are_told_before_the_run(tmp_path):
    with pytest.raises(ArgumentError, match="leaves 12 real images of a class in the last stage; it starts from 40"):
        distill(
            "digits",
            out=tmp_path / "run",
            method="pdd",
            settings=settings(per_class=20) | {"drop": 0.9, "drop_student": "mlp"},
            steps=12,
            **PLAIN,
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    pdd = method(per_class=40)  # 80 of each class a stage, of the 124 there are: the second begins with the last 80
    take(pdd, 0, 7)
    assert pdd.generator().images == 1600


def test_real_images_with_learned_steps_are_not_called_distilled():
    pdd = method(learn_images=False)
    take(pdd, 0, 7)
    assert pdd.generator().spec.method == "real"


def test_one_network_is_enough_from_a_fixed_start():
    for start, count in (("fixed", 1), ("random", 7)):
        pdd = PDD(make_config(PddConfig, settings(start=start) | {"networks": 7}), load_real("digits"), CPU, 0, 12)
        assert pdd.networks == count
        assert f"trains up to {count} network" in pdd.beside()


def test_a_stage_begins_with_images_that_the_one_before_did_not_begin_with():
    pdd = PDD(
        make_config(PddConfig, settings(per_class=5) | {"drop": 0.5, "drop_student": "mlp"}),
        load_real("digits"),
        CPU,
        0,
        12,
    )
    pdd.base.phases()
    begun = pdd.base.generator().table
    pdd._reach(1)
    pdd.base.phases()
    later = pdd.base.generator().table
    assert not any(torch.allclose(a, b, atol=1e-3) for a in begun for b in later)


def test_soft_labels_begin_with_the_class_of_their_image():
    pdd = method(images=7, inner_steps=2, soft=True, smoothing=0.01)
    pdd._reach(1)
    pdd.base.phases()
    targets = pdd.base.targets().flatten(0, 1)
    assert torch.allclose(targets.sum(0), torch.ones(10), atol=0.5), "every class has its share"
    for row, target in enumerate(targets):
        assert target[(7 + row) % 10] > 0.3


def test_a_generator_in_stages_to_begin_with_tells_that_step_sizes_begin_anew(tmp_path, caplog):
    pdd = method()
    take(pdd, 0, 12)
    folder = str(artifact.save(pdd.generator(), tmp_path / "staged"))
    single = DD(make_config(DDConfig, BASE | {"begin": folder}), load_real("digits"), CPU, 0, 4)
    single.phases()
    assert "begin anew" in caplog.text


def test_one_stage_is_the_base():
    config = make_config(DDConfig, BASE | {"begin": "dd-mnist-fixed"})
    assert DD.for_stages(config, 1) == config


# --- legs on one stage alone ------------------------------------------------------------------------------------------


def test_a_stage_alone_is_its_rows():
    table = make_table(30, (10, 20))
    second = table.view(stage=2, alone=True)
    assert torch.equal(second.table, table.table[10:])
    assert [leg.stage for leg in second.recipe.legs] == [None] * len(second.recipe.legs)
    with pytest.raises(ArgumentError, match="but not which"):
        table.view(alone=True)
    assert (second.stages, second.images) == (1, 20)
    assert torch.equal(table.view(stage=1, alone=True).table, table.table[:10])
    assert table.view(stage=2) is table
    single = make_table(10, ())
    assert single.view(stage=1, alone=True) is single
    assert len(GeneratedDataset(second)) == 20


def test_stages_that_draw_without_limit_are_not_seen_alone():
    with pytest.raises(ArgumentError, match="draws without limit; its stages are not seen one by one"):
        make_network().view(stage=1, alone=True)
    leg = Leg(epochs=1, batch_size=10, stage=1, alone=True)
    with pytest.raises(ArgumentError, match="draws without limit"):
        train("mlp", make_network(), ipc=1, recipe=Recipe(legs=(leg,)), engine=CPU)


def test_distinct_images_are_those_of_the_legs_that_were_walked():
    table = make_table(60, (20, 20, 20))
    first, third = (Leg(epochs=1, batch_size=10, stage=k, alone=k == 3) for k in (1, 3))
    recipe = Recipe(legs=(first, third))
    assert train("mlp", table, recipe=recipe, engine=CPU).distinct_images == 40
    assert train("mlp", table, recipe=recipe, engine=CPU, limit_steps=2).distinct_images == 20


def test_a_stage_alone_can_be_stored_and_trained_on(tmp_path):
    pdd = method()
    take(pdd, 0, 12)
    second = artifact.load(artifact.save(pdd.generator().view(stage=2, alone=True), tmp_path / "second"))
    assert [name for name in second.recipe.tensors if "sizes" in name] == ["step_sizes.2"]
    assert train("mlp", second, engine=CPU).steps == 4


def test_legs_say_alone_only_where_they_are():
    leg = Leg(epochs=1, batch_size=10, stage=2)
    assert "alone" not in leg.to_json()
    assert "alone" not in leg.describe()
    alone = Leg(epochs=1, batch_size=10, stage=2, alone=True)
    assert Leg.from_json(json.loads(json.dumps(alone.to_json()))) == alone
    assert alone.describe().startswith("stage 2 alone, 1 epoch")
    with pytest.raises(FormatError, match=r"leg.alone needs leg.stage"):
        Leg(epochs=1, batch_size=10, alone=True)


def test_tensors_that_no_stage_can_share_are_refused():
    leg = Leg(epochs=1, batch_size=10)
    with pytest.raises(ArgumentError, match="Stages need a recipe of one leg"):
        walk([Recipe(legs=(leg,), tensors=("other",))] * 2, [10, 10])
    with pytest.raises(ArgumentError, match="Stages need a recipe of one leg"):
        walk([Recipe(legs=(leg, leg))] * 2, [10, 10])
