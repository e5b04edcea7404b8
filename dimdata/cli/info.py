"""`dimdata info`: all that is known of a generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dimdata.cli import options, output

if TYPE_CHECKING:
    from dimdata.artifact import ArtifactConfig


def run(name: options.Name, json: options.Json = False) -> None:
    """Show what a generator is, how it was made, how to train on it, and its scores."""
    from dimdata.artifact import read_config, resolve
    from dimdata.files import CONFIG, FILES, MODEL

    folder = resolve(name)
    config = read_config(folder)
    files = {file: (folder / file).stat().st_size for file in FILES if (folder / file).is_file()}
    flop, stages = _outline(config)
    if (there := files.get(MODEL, 0)) != config.weights.bytes:
        output.note(
            f"warning: {MODEL} has {there:,} bytes, and {config.weights.bytes:,} in {CONFIG}: it is damaged, or of "
            "another generator, and will not load."
        )
    if json:
        own = {"name": name, "folder": str(folder), "files": files, "flop_per_image": flop}
        output.emit_json({**own, **config.to_json()})
        return
    output.facts({"name": name, "folder": folder, **_facts(config, files, flop, stages)})
    if config.provenance:
        output.line()
        output.facts({str(key).replace("_", " "): _short(value) for key, value in config.provenance.items()})
    _scores(config)


def _outline(config: ArtifactConfig) -> tuple[int | None, int]:
    """Return what drawing an image costs, and the stages; nothing of it where no installed package knows it."""
    from dimdata.errors import DimdataError
    from dimdata.generators.cost import cost, outline

    try:
        return cost(config.generator).flop, outline(config.generator).stages
    except DimdataError:
        return None, 1


def _facts(config: ArtifactConfig, files: dict[str, int], flop: int | None, stages: int) -> dict[str, object]:
    from dimdata.report import size

    spec = config.generator
    low, high = spec.value_range
    facts: dict[str, object] = {
        "dataset": spec.dataset or "-",
        "method": spec.method,
        "kind": f"{spec.kind}{f' ({network})' if (network := _network(spec.options)) else ''}",
        "classes": f"{spec.num_classes}: {', '.join(spec.classes[:10])}{', ...' if spec.num_classes > 10 else ''}",
        "images": f"{_shape(spec.image_shape)} in [{low:g}, {high:g}], "
        + ("without limit" if spec.images is None else f"{spec.images:,} in all"),
        "drawing": f"{flop / 1e6:.1f} MFLOP an image" if flop else "-",
        "latent": spec.latent or "-",
        "targets": spec.targets,
        "normalize": f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"
        if (whitening := config.recipe.whitening) is None
        else f"whitened (ZCA, eps {whitening.eps:g}, {whitening.components:,} components: "
        f"{size(whitening.nbytes(spec.image_shape))})",
        "recipe": "\n".join(leg.describe() for leg in config.recipe.legs),
        "files": "\n".join(f"{file} {size(count)}" for file, count in files.items()),
        "sha256": config.weights.sha256,
        "format": config.format,
    }
    if stages > 1:
        facts["stages"] = f"{stages}; any first k are a smaller generator (stage=k)"
    if spec.flags:
        facts["flags"] = ", ".join(spec.flags)
    return facts


def _network(options: Mapping[str, Any]) -> str:
    """Return the name of a generator's network, or of the network of its stages."""
    inner = options.get("network")
    return str((inner if isinstance(inner, Mapping) else options).get("name", ""))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _short(value: Any) -> str:
    """Return a value of the provenance in one line; `--json` has all of it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if not isinstance(item, Mapping | list))
    return str(value)


def _scores(config: ArtifactConfig) -> None:
    from dimdata.report import notes, table
    from dimdata.scores import Score

    scores = [Score.from_json(score, keep_unknown=True) for score in config.scores if "mean" in score]
    if scores:
        output.line()
        output.show(table(scores), keep=3)
        for text in notes(scores):
            output.note(text)
