"""`README.md` of a generator: what it is, how good, at what cost, how it was made, and what it must not be used for.

Everything is rendered from `config.json`, so a card can be made anew at any time. What a person wrote between
`<!-- keep -->` and `<!-- /keep -->` stays.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dimdata.artifact import ArtifactConfig
from dimdata.hub.rights import Source, source_of
from dimdata.nearest import NearestCheck
from dimdata.report import escape, markdown, notes, size
from dimdata.scores import Score

KEEP = re.compile(r"<!--\s*keep\s*-->(.*?)<!--\s*/keep\s*-->", re.DOTALL)

_PAPERS = {
    "dim": """@article{wang2023dim,
  title = {{DiM}: Distilling Dataset into Generative Model},
  author = {Wang, Kai and Gu, Jianyang and Zhou, Daquan and Zhu, Zheng and Jiang, Wei and You, Yang},
  journal = {arXiv preprint arXiv:2303.04707},
  year = {2023}
}""",
    "dd": """@article{wang2018dataset,
  title = {Dataset Distillation},
  author = {Wang, Tongzhou and Zhu, Jun-Yan and Torralba, Antonio and Efros, Alexei A.},
  journal = {arXiv preprint arXiv:1811.10959},
  year = {2018}
}""",
    "pdd": """@inproceedings{chen2024data,
  title = {Data Distillation Can Be Like Vodka: Distilling More Times For Better Quality},
  author = {Chen, Xuxi and Yang, Yu and Wang, Zhangyang and Mirzasoleiman, Baharan},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}""",
}


def card(
    config: ArtifactConfig,
    scores: Sequence[Score] | None = None,
    *,
    name: str = "",
    preview: bool = True,
    previous: str | None = None,
) -> str:
    """Return the text of a generator's `README.md`.

    Args:
        config: The generator's `config.json`. Of its provenance are read, where they are present: `command`,
            `budget`, `seconds`, `device`, `nearest` (a `NearestCheck`), `matching_gain`, `base_model`.
        scores: Measured results; those of the config unless given.
        name: The bundled name, or `owner/name` on the Hub; made of method and dataset unless given.
        preview: Whether the folder has a `preview.png`.
        previous: The card that this one replaces; what is marked to be kept is carried over.

    Raises:
        FormatError: If the scores of the config, or its nearest-image check, cannot be read.
    """
    if scores is None:
        scores = [Score.from_json(score, keep_unknown=True) for score in config.scores]
    spec = config.generator
    name = name or f"{spec.method}-{spec.dataset or 'generator'}"
    source = source_of(spec.dataset)
    sections = [
        _title(config, name, source, preview),
        _usage(config, name),
        _scores(scores),
        _nearest(config.provenance.get("nearest")),
        _making(config),
        _gain(config.provenance.get("matching_gain")),
        _limits(config, scores),
        _kept(previous),
        _rights(source),
        _citation(config, source),
    ]
    head = _head(config, name, scores, source)
    return f"---\n{head}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _head(config: ArtifactConfig, name: str, scores: Sequence[Score], source: Source) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    spec = config.generator
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=source.hub_id or spec.dataset or "unknown",
            dataset_name=source.title,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=score.mean,
            metric_name=f"{score.student}, {score.budget_text}, {score.draw} draw",
            metric_config=f"{score.student} {score.budget_text} {score.draw} {score.protocol}",
            metric_args={"seeds": len(score.seeds), "epochs": score.epochs, "steps": score.steps, "test": score.test},
        )
        for score in scores
        if score.what == "generator"
    ]
    data = ModelCardData(
        library_name="dimdata",
        license=source.licence,
        license_name=source.licence_name,
        license_link=source.licence_link,
        pipeline_tag="unconditional-image-generation",
        tags=["dataset-distillation", "dimdata", spec.method, *([spec.dataset] if spec.dataset else []), *spec.flags],
        datasets=[source.hub_id] if source.hub_id else None,
        metrics=["accuracy"] if results else None,
        base_model=_text(config.provenance.get("base_model")),
        model_name=name,
        eval_results=results or None,
    )
    return data.to_yaml()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _title(config: ArtifactConfig, name: str, source: Source, preview: bool) -> str:
    spec = config.generator
    channels, height, width = spec.image_shape
    images = "unlimited images" if spec.images is None else f"{spec.images:,} images"
    shown = ", ".join(escape(c) for c in spec.classes[:20]) + (", ..." if spec.num_classes > 20 else "")
    lines = [
        f"# {escape(name)}",
        f"{escape(source.title)}, distilled by {escape(spec.method)} into {size(config.weights.bytes)}: {images} of "
        f"{height}x{width} pixels and {channels} channel{'s' * (channels > 1)} in {spec.num_classes} classes "
        f"({shown}), for `dimdata`.",
    ]
    if "poisoned" in spec.flags:
        lines.insert(1, "**Poisoned: students trained on this generator misbehave on purpose. For research only.**")
    if preview:
        lines.append("![Draws, one column a class](preview.png)")
    return "\n\n".join(lines)


def _usage(config: ArtifactConfig, name: str) -> str:
    stored = config.generator.images is not None
    quoted = f'"{name}"' if re.fullmatch(r"[\w./ -]+", name) else repr(name)
    code = f"""from torch.utils.data import DataLoader
from dimdata import GeneratedDataset

dataset = GeneratedDataset({quoted}{"" if stored else ", ipc=10"})
for images, labels in DataLoader(dataset, batch_size=64, shuffle=True):
    images = dataset.normalize(images)  # apply it to real test images, too"""
    commands = f"dimdata train {shlex.quote(name)}{'' if stored else ' --ipc 10'}"
    return "\n\n".join(
        [
            "## Use",
            _fenced(code, "python"),
            "Or train a student by the recipe, and see its accuracy on real images:",
            _fenced(commands, "bash"),
        ]
    )


def _scores(scores: Sequence[Score]) -> str:
    table = markdown(scores)
    if not table:
        return "## Scores\n\nNone were measured yet: `dimdata evaluate` measures them."
    remarks = "\n".join(f"- {escape(note)}" for note in notes(scores))
    return f"## Scores\n\n{table}\n\n{remarks}"


def _nearest(data: Any) -> str:
    if data is None:
        return ""
    check = NearestCheck.from_json(data, keep_unknown=True)
    rows = "\n".join(
        f"| {what} | {count:,} | " + " | ".join(f"{value:.4f}" for value in values) + " |"
        for what, count, values in (
            ("draws", check.draws, check.generated),
            ("held-out real images", check.held_out, check.real),
        )
    )
    return f"""## Are training images stored?

Distance to the nearest of {check.train:,} training images (root mean square per pixel, values in 0 to 1):

| | images | least | 1 % quantile | median |
| --- | ---: | ---: | ---: | ---: |
{rows}

{check.closer:,} of {check.draws:,} draws are nearer to a training image than 99 % of held-out images are; about
{max(1, round(check.draws / 100)):,} would be if draws were like new real images. Shifted or recoloured copies are not
seen by this check."""


def _making(config: ArtifactConfig) -> str:
    provenance = config.provenance
    lines = ["## How it was made", f"Students follow this recipe: {escape(config.recipe.describe())}."]
    facts = [
        f"- {escape(key.replace('_', ' '))}: {escape(_fact(value))}"
        for key, value in provenance.items()
        if key not in ("command", "nearest", "matching_gain") and _fact(value)
    ]
    if facts:
        lines.append("\n".join(facts))
    command = _text(provenance.get("command"))
    if command:
        lines.append(f"To make it again:\n\n{_fenced(command, 'bash')}")
    lines.append(f"Weights: sha256 `{config.weights.sha256}`, {config.weights.bytes:,} bytes.")
    return "\n\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items() if _fact(item))
    if isinstance(value, list | tuple):
        return ", ".join(_fact(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _gain(data: Any) -> str:
    """Return what the matching phase added over giving its time to the first phase."""
    if not isinstance(data, Mapping) or not data:
        return ""
    rows = "\n".join(
        f"| {escape(str(key).replace('_', ' '))} | {escape(_fact(value))} |" for key, value in data.items()
    )
    return (
        "## Gain of the matching phase\n\nAgainst the same time given to the first phase alone:\n\n"
        f"| | |\n| --- | ---: |\n{rows}"
    )


def _limits(config: ArtifactConfig, scores: Sequence[Score]) -> str:
    spec = config.generator
    lines = []
    if spec.images is None:
        lines.append(
            "IPC counts the images of an epoch: under a fresh draw a student sees new ones at each of 1,000 epochs. "
            "Compare such figures with those of other generators and with the distinct-real column, not with those "
            "of fixed sets of images."
        )
    shares = [score.share for score in scores if score.share is not None]
    if shares:
        reached = dict.fromkeys(f"{share:.1f}" for share in (min(shares), max(shares)))
        lines.append(
            f"Students reach {' to '.join(reached)} % of what the same number of distinct real "
            "images gives. Where real images are at hand, train on them."
        )
    lines.append(
        "It carries what its source data carries, errors and biases included, and draws may show no class clearly. "
        "Distillation is no guarantee of privacy."
    )
    if any(score.test.startswith("hold-out") for score in scores):
        lines.append("Scores on the hold-out of a few test images are rough: two figures a point apart may be equal.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _kept(previous: str | None) -> str:
    body = re.sub(r"\A---\n.*?\n---\n", "", previous or "", count=1, flags=re.DOTALL)
    return "\n\n".join(f"<!-- keep -->{block}<!-- /keep -->" for block in KEEP.findall(body))


def _rights(source: Source) -> str:
    where = f" ({source.url})" if source.url else ""
    return f"## Rights\n\nDistilled from {escape(source.title)}{where}. {source.rights}"


def _citation(config: ArtifactConfig, source: Source) -> str:
    entries = [entry for entry in (_PAPERS.get(config.generator.method), source.citation) if entry]
    return "## Citation\n\n" + _fenced("\n\n".join(entries), "bibtex") if entries else ""


def _fenced(text: str, language: str) -> str:
    """Return a code block that its text cannot end, and in which no marker of kept text can hide."""
    text = text.replace("<!--", "<! --")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
