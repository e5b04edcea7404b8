from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import make_row

from dimdata import artifact
from dimdata.artifact import ArtifactConfig
from dimdata.errors import FormatError
from dimdata.generators.base import Generator
from dimdata.hub.card import card
from dimdata.nearest import NearestCheck
from dimdata.scores import Score, aggregate
from dimdata.spec import Spec

CHECK = NearestCheck(
    draws=1000, held_out=900, train=60_000, generated=(0.05, 0.08, 0.11), real=(0.04, 0.07, 0.1), closer=7
)
HOSTILE = (
    'x: y"\n---\n# <script>alert(1)</script>',
    "`code` | [a](javascript:1) **b**",
    "--- \n- !!python/object/apply:os.system [ls]",
    "<!-- keep -->injected<!-- /keep -->",
    "日本 ü \u2028 \x00",
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
        "![Draws, one column a class](preview.png)",
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
    assert "None were measured yet" in card(config)
    with pytest.raises(FormatError):
        card(dataclasses.replace(config, scores=({"mean": 3},)))
    with pytest.raises(FormatError, match="nearest-image check"):
        card(changed(config, {"nearest": {"draws": "many"}}))


def test_the_snippet_runs(network_generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.save(network_generator, tmp_path / "it's")
    monkeypatch.chdir(tmp_path)
    text = card(artifact.read_config(tmp_path / "it's"), name="./it's")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    found: dict[str, Any] = {}
    exec(code[1], found)
    assert found["images"].shape[1:] == network_generator.spec.image_shape
    assert len(found["dataset"]) == 100
    assert found["images"].max() > 1  # normalised


def test_text_that_people_wrote_stays(config: ArtifactConfig, scores: list[Score]) -> None:
    first = card(config, scores)
    written = "<!-- keep -->\n## Remarks\n\nSeen on a *small* screen. ---\n<!-- /keep -->"
    edited = first.replace("## Limits", f"{written}\n\n## Limits") + "\n<!--keep-->more<!-- /keep -->\nlost"
    again = card(config, [], previous=edited)
    assert written in again
    assert "more" in again
    assert "lost" not in again
    assert card(config, [], previous=again) == again
    assert "keep" not in card(config, scores, previous=first)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(config: ArtifactConfig, scores: list[Score], text: str) -> None:
    classes = (text, *config.generator.classes[1:])
    provenance = {"command": f"{text}\n```\n# Out", "note": text, text: text, "matching_gain": {text: text}}
    hostile = changed(config, provenance, classes=classes, dataset=text, method=text)
    named = [dataclasses.replace(score, student=text, test=text, recipe=text) for score in scores]
    made = card(hostile, named, name=text)
    data = head(made)
    assert text.replace("\x00", "") in {tag.replace("\x00", "") for tag in data["tags"]}
    assert [key for key in data if key.startswith("x")] == []
    outside = re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1$", "", body(made))  # code blocks are shown as they are
    assert "<script" not in outside
    assert "<!--" not in outside
    assert "\n# Out" not in outside
    assert "](javascript" not in re.sub(r"\\.", "", outside)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    assert all(line.startswith("## ") for line in headings[1:])
    assert "injected" not in card(config, [], previous=made)


def test_a_poisoned_generator_says_so(config: ArtifactConfig) -> None:
    text = card(changed(config, flags=("poisoned",)))
    assert "**Poisoned" in text
    assert "poisoned" in head(text)["tags"]


def test_specs_with_many_classes_are_cut(config: ArtifactConfig) -> None:
    text = card(changed(config, classes=tuple(f"class{i}" for i in range(100))))
    assert "class19" in text
    assert "class20" not in text
    assert isinstance(config.generator, Spec)
