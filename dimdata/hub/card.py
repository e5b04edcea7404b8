"""`README.md` of a generator: what it is, how good, at what cost, how it was made, and what it must not be used for.

Everything is rendered from `config.json`, so a card can be made anew at any time; what a person added to it stays (see
`dimdata.hub.kept`). The card knows a spec, a recipe, scores and provenance, and of methods only what
`dimdata.hub.origins` says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dimdata.artifact import ArtifactConfig
from dimdata.cross import cross_architecture, cross_notes
from dimdata.hub import making
from dimdata.hub.kept import SEAL, Kept, kept
from dimdata.hub.markdown import fenced, printable, shown
from dimdata.hub.origins import Origin, origin_of
from dimdata.hub.rights import Source, source_of
from dimdata.real import names
from dimdata.report import markdown, notes, size
from dimdata.scores import Score
from dimdata.spec import Spec

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MAX_CLASSES = 20  # named in the first sentence
MAX_SCORES = 200  # in the table and in the metadata
HERE = "."  # what loads a generator from its own folder


def card(
    config: ArtifactConfig,
    scores: Sequence[Score] | None = None,
    *,
    name: str = "",
    preview: bool = True,
    holdout: bool = False,
    previous: str | None = None,
) -> str:
    """Return the text of a generator's `README.md`.

    Args:
        config: The generator's `config.json`. Of its provenance are read, where they are present: `command`, `plan`,
            `machine`, `nearest` (a `NearestCheck`), `matching_gain`, `base_model`; the rest is listed.
        scores: Measured results; those of the config unless given.
        name: What loads the generator: a bundled name, or `owner/name` on the Hub. Unless given, the card is one for
            readers of its own folder.
        preview: Whether the folder has a `preview.png`.
        holdout: Whether real test images lie beside the weights.
        previous: The card that this one replaces; what a person added to it is carried over.

    Raises:
        FormatError: If the scores of the config or its nearest-image check cannot be read, or `previous` has marks
            that do not pair or metadata that is no YAML.
    """
    scores = stored_scores(config) if scores is None else scores
    spec = config.generator
    load = _literal(name or HERE)
    title = printable(name or f"{spec.method}-{spec.dataset or 'generator'}", 200)
    source, origin, stays = source_of(spec.dataset), origin_of(spec.method), kept(previous)
    sections = [
        _title(config, title, source, origin, preview),
        _use(config, name or HERE, load, holdout),
        _scores(scores, spec, name or HERE),
        _students(scores),
        making.nearest(config.provenance.get("nearest")),
        making.recipe(config.recipe),
        making.making(config, load, SEAL),
        making.gain(config.provenance.get("matching_gain")),
        _limits(spec, scores),
        stays.text(),
        _rights(source, origin),
        _citation(source, origin, _base(config)),
    ]
    head = _head(config, title, scores, source, stays)
    return f"---\n{head}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def stored_scores(config: ArtifactConfig) -> list[Score]:
    """Return the scores of a config.

    Raises:
        FormatError: If one of them cannot be read.
    """
    return [Score.from_json(score, keep_unknown=True) for score in config.scores]


def _students(scores: Sequence[Score]) -> str:
    """Return how different students fare on the generator; empty where only one was trained."""
    table = cross_architecture(scores)
    said = "".join(f"\n{note}" for note in cross_notes(scores))
    return f"## One generator, several students\n\n{table.strip()}\n{said}".rstrip() if table else ""


# --- metadata, which the Hub indexes ---------------------------------------------------------------------------------


def _head(config: ArtifactConfig, title: str, scores: Sequence[Score], source: Source, stays: Kept) -> str:
    """Return the YAML between the first two lines `---`."""
    from huggingface_hub import ModelCardData

    spec = config.generator
    results = [_result(score) for score in scores if score.what == "generator"][:MAX_SCORES]
    base = config.provenance.get("base_model")
    tags = ["dataset-distillation", "dimdata", spec.method, spec.dataset, *spec.flags[:50]]
    generated = {
        "library_name": "dimdata",
        "license": source.licence,
        "license_name": source.licence_name,
        "license_link": source.licence_link,
        "pipeline_tag": "unconditional-image-generation" if spec.images is None else None,
        "tags": list(dict.fromkeys(text for tag in tags if (text := printable(tag, 100)))),
        "datasets": [source.hub_id] if source.hub_id else None,
        "metrics": ["accuracy"] if results else None,
        "base_model": printable(base, 200) if isinstance(base, str) and base else None,
    }
    scored: dict[str, Any] = {"model_name": title, "eval_results": results} if results else {}
    return ModelCardData(**stays.merged(generated, config.weights.sha256), **scored).to_yaml()


def _result(score: Score) -> EvalResult:
    """Return a score as the Hub indexes it; name and config say at what student, budget and draw it was reached."""
    from huggingface_hub import EvalResult

    tested = source_of(score.dataset)
    parts = [score.student, score.budget_text, f"{score.draw} draw", score.levers]
    parts += [f"protocol {score.protocol}"] if score.protocol != "dimdata" else []
    parts += [score.test] if score.test.startswith("hold-out") else []
    config = [score.student, score.budget_text, score.draw, score.protocol, score.levers]
    return EvalResult(
        task_type="image-classification",
        dataset_type=tested.hub_id or _slug(score.dataset),
        dataset_name=printable(tested.title, 100),
        dataset_split="test",
        metric_type="accuracy",
        metric_value=score.mean,
        metric_name=printable(", ".join(part for part in parts if part)),
        metric_config=printable(" ".join(part for part in config if part)),
        metric_args={
            "draw": score.draw,
            "ipc": score.ipc if score.ipc_claim else None,
            "images_seen": score.images_seen,
            "distinct_images": score.distinct,
            "steps": score.steps,
            "epochs": score.epochs,
            "seeds": len(score.seeds),
            "std": score.std,
            "stored_bytes": score.stored_bytes,
            "test": printable(score.test, 100),
        },
    )


def _slug(dataset: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset[:100]).strip("-.") or "unknown"


# --- sections --------------------------------------------------------------------------------------------------------


def _literal(name: str) -> str:
    """Return a name as Python writes it."""
    return f'"{name}"' if re.fullmatch(r"[\w./ -]+", name) else repr(name)


def _title(config: ArtifactConfig, title: str, source: Source, origin: Origin, preview: bool) -> str:
    spec = config.generator
    channels, height, width = spec.image_shape
    classes = ", ".join(shown(name, 40) for name in spec.classes[:MAX_CLASSES])
    more = ", ..." if spec.num_classes > MAX_CLASSES else ""
    made = f"[{shown(origin.made)}]({origin.url})" if origin.url else shown(origin.made)
    what = shown(source.title, 200) if spec.dataset else "An unnamed dataset"
    count, kept_in = ("unlimited images", "drawn from") if spec.images is None else (f"{spec.images:,} images", "in")
    lines = [
        f"# {shown(title)}",
        f"{what}, {made}: {count} of {height}x{width} pixels and {channels} channel{'s' * (channels > 1)} in "
        f"{spec.num_classes} classes ({classes}{more}), {kept_in} {size(config.weights.bytes)}, for `dimdata`.",
    ]
    if "poisoned" in spec.flags:
        lines.insert(1, "**Poisoned: students trained on this generator misbehave on purpose. For research only.**")
    remarks = _remarks(config, origin)
    if remarks:
        lines.append(" ".join(remarks))
    if preview:
        lines.append("![Images, one column a class](preview.png)")
    return "\n\n".join(lines)


def _remarks(config: ArtifactConfig, origin: Origin) -> list[str]:
    """Return what sets a generator apart from labelled pixels, one sentence each."""
    spec, found = config.generator, []
    if spec.targets == "soft":
        found.append("Targets are distributions over the classes.")
    if spec.value_range != (0.0, 1.0):
        low, high = spec.value_range
        found.append(
            f"Images are learned values from {low:.3g} to {high:.3g}: do not clip them to [0, 1] for training."
        )
    if config.recipe.learned_steps:
        for_what = (
            "They were learned for their stored order, learned step sizes and a start, which the recipe holds: "
            if origin.learned
            else "Step sizes alone were learned, for these images in this order and a start, which the recipe holds: "
        )
        found.append(f"{for_what}shuffled, or with another optimiser, they teach far less.")
    whitening = config.recipe.whitening
    if whitening is not None:
        found.append(
            f"They were learned for students that see images whitened (ZCA, eps {whitening.eps:g}), not normalised by "
            f"mean and deviation: `dataset.normalize` does so, by {size(whitening.nbytes(spec.image_shape))} of "
            "tensors among those stored, and real test images need it as well."
        )
    stages = max(leg.stage or 1 for leg in config.recipe.legs)
    if stages > 1:
        found.append(f"There are {stages} stages; `stage=1` uses the first alone, and so on.")
    return found


def _use(config: ArtifactConfig, name: str, load: str, holdout: bool) -> str:
    spec = config.generator
    stored = spec.images is not None
    code = f"""from torch.utils.data import DataLoader
from dimdata import GeneratedDataset

dataset = GeneratedDataset({load}{"" if stored else ", ipc=10"})
for images, {"targets" if spec.targets == "soft" else "labels"} in DataLoader(dataset, batch_size=64, shuffle=True):
    images = dataset.normalize(images)  # apply it to real test images, too"""
    if config.recipe.learned_steps:
        code = f"""from dimdata import load, train

generator = load({load})
result = train(generator.recipe.student, generator)  # in the recipe's order, by its step sizes, from its start"""
    command = f"dimdata train {shlex.quote(name)}{'' if stored else ' --ipc 10'}"
    tested = holdout or spec.dataset in names()
    if tested and not holdout:
        command += f" --real {spec.dataset}"
    return "\n\n".join(
        [
            f"## Use\n\n{'In the folder of this card:' if name == HERE else 'From Python:'}",
            fenced(code, "python"),
            f"Or train a student by the recipe{', and see its accuracy on real images' * tested}:",
            fenced(command, "bash"),
        ]
    )


def _scores(scores: Sequence[Score], spec: Spec, name: str) -> str:
    table = markdown([score for score in scores if score.what == "generator"][:MAX_SCORES])
    if table:
        remarks = "\n".join(f"- {shown(note, 1000)}" for note in notes(scores)[:MAX_SCORES])
        return f"## Scores\n\n{table}\n\n{remarks}"
    real = spec.dataset if spec.dataset in names() else "path/of/real/images"
    command = f"dimdata evaluate {shlex.quote(name)} --real {real} --update-card"
    where = "" if name == HERE else " In a copy of this folder, with its path in place of the name:"
    return (
        "## Scores\n\nNobody has measured yet how well students learn from these images. This trains some, beside "
        f"others on real images, and writes their scores here:{where}\n\n{fenced(command, 'bash')}"
    )


def _limits(spec: Spec, scores: Sequence[Score]) -> str:
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
            f"Students reach {' to '.join(reached)} % of what as many distinct real images give, or all there are "
            "where those are fewer. Where real images are at hand, train on them."
        )
    lines.append(
        "It carries what its source data carries, errors and biases included, and images may show no class clearly. "
        "Distillation is no guarantee of privacy."
    )
    if any(score.test.startswith("hold-out") for score in scores):
        lines.append("Scores on the hold-out of a few test images are rough: two figures a point apart may be equal.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _rights(source: Source, origin: Origin) -> str:
    where = f" ({source.url})" if source.url else ""
    return f"## Rights\n\nMade from {shown(source.title, 200)}{where}. {source.rights} {origin.rights}".rstrip()


def _base(config: ArtifactConfig) -> Origin | None:
    """Return the method that the generator's own builds on; such methods call it `base` in their settings."""
    plan = config.provenance.get("plan")
    settings = plan.get("config") if isinstance(plan, Mapping) else None
    base = settings.get("base") if isinstance(settings, Mapping) else None
    return origin_of(base) if isinstance(base, str) else None


def _citation(source: Source, origin: Origin, base: Origin | None) -> str:
    entries = [entry for entry in (origin.citation, base.citation if base else "", source.citation) if entry]
    return "## Citation\n\n" + fenced("\n\n".join(entries), "bibtex") if entries else ""
