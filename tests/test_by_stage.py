"""The accuracy after each stage: in rows, tables and plots, and on the command line."""

import json
import statistics

import pytest
from conftest import make_network
from test_cli import PLAIN, run
from test_plots import drawn
from test_report import make_row

from dimdata import artifact
from dimdata.distill.staging import walk
from dimdata.engine import Engine
from dimdata.errors import ArgumentError, WorldError
from dimdata.evaluate import evaluate
from dimdata.generators.network import NetworkGenerator
from dimdata.generators.table import TableGenerator
from dimdata.plots import stage_plot
from dimdata.protocols import protocol
from dimdata.real import load_real, random_real
from dimdata.recipe import Leg, Recipe
from dimdata.scores import read_rows
from dimdata.stages import require_stages, stage_grid, walks

ENGINE = Engine.of("cpu", "fp32", "off")
LEG = Recipe(legs=(Leg(epochs=20, batch_size=20, lr=0.05),))

__all__ = ["run"]  # a fixture of the command line


@pytest.fixture(scope="module")
def real():
    return load_real("digits")


@pytest.fixture(scope="module")
def staged(real):
    """Three stages of two real images of each class."""
    parts = [random_real(real, 2, seed, LEG) for seed in range(3)]
    return TableGenerator.joined(parts, walk([LEG] * 3, [20] * 3), "pdd")


@pytest.fixture
def folder(staged, real, tmp_path):
    holdout = {"images": real.test.images[:200], "labels": real.test.labels[:200]}
    return artifact.save(staged, tmp_path / "staged", holdout=holdout)


def score(generator, real, **arguments):
    rows = []
    common = {"students": "convnet1-w8", "seeds": 2, "real": real, "baselines": (), "engine": ENGINE}
    evaluate(generator, **common | arguments, on_row=rows.append)
    return rows


def make_walk_rows(**changes):
    return [
        make_row(
            seed=seed,
            accuracy=90.0 + seed,
            stages=(70.0 + seed, 80.0 + 3 * seed, 90.0 + seed),
            stage_steps=(500, 1200, 2000),
            stage_bytes=(1_000, 2_000, 3_000),
            **changes,
        )
        for seed in range(3)
    ]


def test_rows_say_steps_and_bytes_of_every_stage(staged, real):
    (first, second) = score(staged, real)
    lengths = [leg.steps for leg in staged.recipe.legs]
    assert first.stage_steps == (lengths[0], lengths[0] + lengths[1], first.steps)
    assert sum(lengths) == first.steps
    assert first.stage_bytes == tuple(staged.view(stage=k).nbytes for k in (1, 2, 3))
    assert second.stages != first.stages


def test_a_prefix_by_itself_scores_what_the_whole_scores_after_it(staged, real):
    whole = score(staged, real, seeds=1)[0]
    for k in (1, 2):
        (part,) = score(staged, real, seeds=1, stage=k)
        assert part.accuracy == whole.stages[k - 1]
        assert part.stages == whole.stages[:k]
        assert (part.steps, part.stored_bytes) == (whole.stage_steps[k - 1], whole.stage_bytes[k - 1])
    assert part.name == "pdd (stages 1-2)"
    assert score(staged, real, seeds=1, stage=3)[0].key == whole.key


def test_a_prefix_of_networks_by_itself_scores_what_the_whole_scores_after_it(real):
    parts = [make_network(seed=seed, image_shape=(1, 8, 8)) for seed in range(2)]
    legs = Recipe(legs=(Leg(epochs=8, batch_size=10, lr=0.05),))
    whole = NetworkGenerator.joined(parts, walk([legs] * 2, [None] * 2), "pdd")
    (both,) = score(whole, real, seeds=1, ipc=2)
    (first,) = score(whole, real, seeds=1, ipc=2, stage=1)
    assert both.stage_steps == (8, 16)
    assert first.accuracy == both.stages[0]


def test_rows_of_files_without_steps_of_stages_are_completed(staged, real, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = score(staged, real, output=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["stage_steps"], line["stage_bytes"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not read_rows(path)[0].stage_steps
    assert score(staged, real, output=path) == rows


def test_walks_take_rows_together_over_seeds():
    rows = [*make_walk_rows(), make_row(), make_row(what="random", draw="fixed", source="r")]
    (found,) = walks(rows)
    assert found.means == [71.0, 83.0, 91.0]
    assert found.stds == [1.0, 3.0, 1.0]
    (lone,) = walks(rows[:1])
    assert lone.stds == [None] * 3
    assert [line["stage"] for line in found.to_json()] == [1, 2, 3]
    assert found.to_json()[1]["accuracies"] == [80.0, 83.0, 86.0]
    header, lines = stage_grid([found])
    assert header[-5:] == ["stored", "seed 0", "seed 1", "seed 2", "accuracy %"]
    assert [line[header.index("stages")] for line in lines] == ["1", "1-2", "1-3"]
    assert lines[1][-5:] == ["2.00 kB", "80.00", "83.00", "86.00", "83.00 ± 3.00"]
    assert lines[1][header.index("student steps")] == "1,200"


def test_two_walks_share_a_table_though_their_seeds_differ():
    found = walks([*make_walk_rows(), *make_walk_rows(name="other", source="o")[1:]])
    header, lines = stage_grid(found)
    assert header[0] == "name"
    assert [line[header.index("seed 0")] for line in lines] == ["70.00", "80.00", "90.00", "-", "-", "-"]


def test_what_has_no_stages_is_refused(staged):
    network = make_network()
    with pytest.raises(ArgumentError, match="no stages"):
        require_stages(network, protocol("dimdata"))
    with pytest.raises(ArgumentError, match="no stages"):
        require_stages(staged.view(stage=1), protocol("dimdata"))
    with pytest.raises(ArgumentError, match="all stages at once"):
        require_stages(staged, protocol("dim-paper"))
    require_stages(staged, protocol("dimdata"))


def test_the_plot_of_one_walk_tells_its_stages(tmp_path):
    pytest.importorskip("matplotlib")
    (found,) = walks(make_walk_rows())
    text = drawn(stage_plot([found], tmp_path / "one.svg"))
    for word in (
        "stage 1: 71.00",
        "stage 3: 91.00",
        "3.00 kB",
        "student steps",
        "2,000",
        "mnist test (10,000)",
        "IPC 10",
    ):
        assert word in text
    for ending in ("png", "pdf", "svg"):
        first, second = (stage_plot([found], tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
        assert first == second


def test_the_plot_of_several_walks_names_them(tmp_path):
    pytest.importorskip("matplotlib")
    found = walks([*make_walk_rows(), *make_walk_rows(name="$a_{", source="o")])
    text = drawn(stage_plot(found, tmp_path / "two.svg"))
    assert "dim-mnist" in text
    assert "stage 1" not in text


def test_refusals_of_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = walks(make_walk_rows())
    with pytest.raises(ArgumentError, match="no score after each stage"):
        stage_plot([], tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="ending"):
        stage_plot(found, tmp_path / "a.xyz")
    with pytest.raises(WorldError):
        stage_plot(found, tmp_path / "absent" / "a.png")


# --- the command line --------------------------------------------------------------------------------------------


def test_evaluate_by_stage_prints_a_table_and_draws(run, folder, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["evaluate", folder, "--student", "convnet1-w8", "--seeds", 2, "--by-stage", "--baselines", "none", *PLAIN]
    shown = run(*words, "-o", "rows.jsonl", "--plot", "stages.svg")
    assert shown.code == 0, shown.err
    rows = read_rows(tmp_path / "rows.jsonl")
    for stage in range(3):
        values = [row.stages[stage] for row in rows]
        assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in shown.out
        assert all(f"{value:.2f}" in shown.out for value in values)
    assert "student steps" in drawn(tmp_path / "stages.svg")
    made = json.loads(run(*words, "-o", "rows.jsonl", "--json").out)
    assert [line["steps"] for line in made["by_stage"][0]] == list(rows[0].stage_steps)
    assert made["scores"][0]["stages"][2] == made["by_stage"][0][2]["mean"]


def test_a_prefix_beyond_the_last_stage_and_generators_without_stages_are_told_in_one_sentence(run, folder, tmp_path):
    flat = artifact.save(make_network(image_shape=(1, 8, 8)), tmp_path / "flat")
    for words, told in (
        (("evaluate", folder, "--stage", 4), "has 3 stages, not 4."),
        (("train", folder, "--stage", 4), "has 3 stages, not 4."),
        (("evaluate", folder, "--stage", 0), "has 3 stages, not 0."),
        (("evaluate", flat, "--stage", 2, "--real", "digits"), "has 1 stage, not 2."),
        (("evaluate", flat, "--by-stage", "--real", "digits"), "has no stages to score one after another."),
        (("evaluate", folder, "--by-stage", "--stage", 1), "has no stages to score one after another."),
        (("evaluate", folder, "--by-stage", "--protocol", "dim-paper"), "on all stages at once."),
        (("evaluate", folder, "--stage", 2, "--update-card"), "not of its first stages."),
        (("evaluate", flat, "--epochs", 3, "--real", "digits", "--plot", "a.png"), "no figure at a number of images"),
        (("evaluate", folder, "--by-stage", "--plot", "a.xyz"), "has no ending of a picture."),
        (("train", "--real", "digits", "--stage", 1), "real images have no stages."),
    ):
        shown = run(*words, *PLAIN)
        assert (shown.code, shown.out) == (2, ""), words
        assert told in shown.err, words
        assert len(shown.err.strip().splitlines()) == 2, "a sentence and a remedy"


def test_a_fixed_draw_is_plotted_under_any_number_of_epochs(run, tmp_path):
    flat = artifact.save(make_network(image_shape=(1, 8, 8)), tmp_path / "flat")
    words = ["evaluate", flat, "--epochs", 2, "--ipc", "1,2", "--draw", "fixed", "--real", "digits", "--seeds", 1]
    shown = run(*words, "--student", "convnet1-w8", "--baselines", "none", "--plot", tmp_path / "fixed.svg", *PLAIN)
    assert shown.code == 0, shown.err
    assert "fixed draw" in drawn(tmp_path / "fixed.svg")


def test_evaluate_of_a_prefix(run, folder):
    words = ["evaluate", folder, "--student", "convnet1-w8", "--seeds", 1, "--baselines", "none", "--json", *PLAIN]
    whole, part = json.loads(run(*words).out), json.loads(run(*words, "--stage", 2).out)
    assert part[0]["stages"] == whole[0]["stages"][:2]


def test_train_tells_the_accuracy_after_each_stage(run, folder):
    words = ["train", folder, "--student", "convnet1-w8", *PLAIN]
    facts = json.loads(run(*words, "--json").out)
    assert [each["stage"] for each in facts["stages"]] == [1, 2, 3]
    assert facts["stages"][-1] == {"stage": 3, "steps": facts["steps"], "accuracy": facts["accuracy"]}
    shown = run(*words)
    lines = [line.split() for line in shown.out.splitlines()]
    for each in facts["stages"]:
        of = "1" if each["stage"] == 1 else f"1-{each['stage']}"
        told = [of, str(each["steps"]), f"{each['accuracy']:.2f}"]
        assert any(all(word in line for word in told) for line in lines), told
    part = json.loads(run(*words, "--stage", 2, "--json").out)
    assert part["stages"] == facts["stages"][:2]
    assert part["accuracy"] == facts["stages"][1]["accuracy"]


def test_train_draws_the_accuracy_after_each_stage(run, folder, staged, tmp_path):
    words = ["--student", "convnet1-w8", "--plot", tmp_path / "stages.svg", *PLAIN]
    shown = run("train", folder, *words)
    assert shown.code == 0, shown.err
    assert "student steps" in drawn(tmp_path / "stages.svg")
    (tmp_path / "stages.svg").unlink()
    for name, said in ((staged.view(stage=1), "has no stages"), (staged, "comes without test images")):
        bare = artifact.save(name, tmp_path / said.split()[0])
        refused = run("train", bare, *words)
        assert refused.code == 2
        assert said in refused.err
        assert not (tmp_path / "stages.svg").exists()


def test_training_without_test_images_tells_of_no_stages(run, staged, tmp_path):
    bare = artifact.save(staged, tmp_path / "bare")
    facts = json.loads(run("train", bare, "--student", "convnet1-w8", "--json", *PLAIN).out)
    assert "stages" not in facts
    assert "accuracy" not in facts
