"""`dimdata list`: what there is, by name."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from dimdata.cli import options, output


def run(
    methods: Annotated[bool, typer.Option("--methods", help="Methods of distillation.")] = False,
    presets: Annotated[bool, typer.Option("--presets", help="Configurations for `distill --config`.")] = False,
    students: Annotated[bool, typer.Option("--students", help="Networks to train.")] = False,
    datasets: Annotated[bool, typer.Option("--datasets", help="Real datasets known by name.")] = False,
    json: options.Json = False,
) -> None:
    """List the bundled generators, or what else has a name.

    Accuracies are on real test images: at IPC 1, 10 and 50 those of ConvNet-3 under a fresh draw, 1,000 epochs; on all
    stored images, where these are what there is, those of the student that the recipe was made for.
    """
    asked = {"methods": methods, "presets": presets, "students": students, "datasets": datasets}
    found = {name: rows() for name, rows in _TABLES.items() if asked.get(name)} or {"generators": _generators()}
    if json:
        output.emit_json(found)
        return
    for number, (kind, rows) in enumerate(found.items()):
        if number:
            output.line()
        if rows:
            output.table([*rows[0]], [[*row.values()] for row in rows])
        else:
            output.note(f"There are no {kind}.")
        if kind == "students":
            output.note("Any other ConvNet is called by its size: convnet4-w64-bn.")
            output.note("Norms: bn batch, in instance, gn group, none; another one stands at the end: vgg11-in.")
            output.note("A network of your own is called by package.module:factory.")


def _generators() -> list[dict[str, Any]]:
    from dimdata.artifact import bundled, read_config
    from dimdata.report import size

    rows = []
    for name, folder in bundled().items():
        config = read_config(folder)
        spec = config.generator
        row: dict[str, Any] = {
            "name": name,
            "dataset": spec.dataset,
            "classes": spec.num_classes,
            "shape": "x".join(map(str, spec.image_shape)),
            "file": size(config.weights.bytes),
        }
        for ipc in (1, 10, 50):
            row[f"IPC {ipc}"] = next((s["mean"] for s in config.scores if _is_headline(s, ipc)), "-")
        of_all = (s["mean"] for s in config.scores if _is_of_all(s, config.recipe.student, spec.images))
        row["all images"] = next(of_all, "-")
        rows.append(row)
    return rows


def _is_headline(score: Any, ipc: int) -> bool:
    wanted = {"what": "generator", "student": "convnet3", "draw": "fresh", "protocol": "dimdata", "ipc_claim": True}
    plain = not score.get("levers")
    return plain and score.get("ipc") == ipc and "mean" in score and all(score.get(k) == v for k, v in wanted.items())


def _is_of_all(score: Any, student: str, stored: int | None) -> bool:
    wanted = {"what": "generator", "student": student, "draw": "fixed", "protocol": "dimdata", "images": stored}
    plain = stored is not None and not score.get("levers")
    return plain and "mean" in score and all(score.get(key) == value for key, value in wanted.items())


def _methods() -> list[dict[str, Any]]:
    from dimdata.distill.method import METHODS

    return [{"name": name, "what it is": _first_sentence(inspect.getmodule(METHODS[name]))} for name in METHODS]


def _presets() -> list[dict[str, Any]]:
    from dimdata.distill.config import about, presets

    rows = []
    for name in presets():
        what, command = about(name)
        rows.append({"name": name, "what it is": what, "command": command})
    return rows


def _students() -> list[dict[str, Any]]:
    from dimdata.generators.base import shapes_only
    from dimdata.students import STUDENTS, default_norm
    from dimdata.students.norms import NORMS, norm_in

    rows = []
    for name in STUDENTS:
        factory = STUDENTS[name]
        with shapes_only():
            network = factory((3, 32, 32), 10)
        count = sum(parameter.numel() for parameter in network.parameters())
        norm = norm_in(network)
        others = "" if default_norm(factory) is None else " ".join(f"-{other}" for other in NORMS if other != norm)
        rows.append(
            {"name": name, "parameters (3x32x32, 10 classes)": f"{count:,}", "norm": norm, "or with": others or "-"}
        )
    return rows


def _datasets() -> list[dict[str, Any]]:
    from dimdata.real import names
    from dimdata.real.known import KNOWN

    rows = []
    for name in names():
        known = KNOWN.get(name)
        source = f"downloaded once ({known.url})" if known else "comes with dimdata"
        rows.append({"name": name, "where from": source})
    return rows


def _first_sentence(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


_TABLES = {"methods": _methods, "presets": _presets, "students": _students, "datasets": _datasets}
