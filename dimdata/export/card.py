"""`README.md` of an export: where its images come from, how they were drawn, what they are, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dimdata.export.writer import Plan, Writer, folder_names
from dimdata.hub.markdown import fenced, printable
from dimdata.hub.rights import Source, source_of
from dimdata.report import escape, markdown_table

MAX_CLASSES = 1_000  # of the table; more are left to the files themselves


def card(plan: Plan, writing: type[Writer], notes: Sequence[str], command: str) -> str:
    """Return the text of a `README.md`.

    Args:
        plan: What was written; its facts are shown.
        writing: What wrote it.
        notes: What else a reader must know, one sentence or two each.
        command: What makes it again; empty where no command can.
    """
    facts, source = plan.facts, source_of(plan.dataset)
    sections = [
        f"# {escape(facts['name'])}, {plan.images:,} images",
        _summary(plan, facts, source),
        "\n".join(f"- {escape(note)}" for note in notes),
        _table(facts),
        f"## Load\n\n{fenced(writing.usage(plan), 'python')}\n\n`FOLDER` is where these files lie.",
        _classes(plan, folder_names(plan.classes) if writing.folders else plan.classes),
        f"## To make it again\n\n{fenced(command, 'bash')}" if command else "",
        _rights(source),
    ]
    return f"---\n{_head(plan, source)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _head(plan: Plan, source: Source) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=source.licence,
        license_name=source.licence_name,
        license_link=source.licence_link,
        task_categories=["image-classification"],
        source_datasets=[source.hub_id] if source.hub_id else None,
        pretty_name=f"{printable(plan.facts['name'], 200)}, {plan.images:,} images",
        tags=["dataset-distillation", "dimdata"],
    )
    return data.to_yaml()


def _summary(plan: Plan, facts: Mapping[str, Any], source: Source) -> str:
    channels, height, width = plan.image_shape
    values = (
        "uint8, 0 to 255 for values in [0, 1]" if str(plan.dtype) == "torch.uint8" else "float32 as they were drawn"
    )
    return (
        f"{plan.images:,} images of {height}x{width} pixels and {channels} channel{'s' * (channels > 1)} in "
        f"{len(plan.classes)} classes, which stand for {escape(source.title)}: drawn by dimdata {facts['dimdata']} "
        f"from the generator {escape(facts['name'])} ({escape(facts['method'])}). Values are {values}. As a stored set "
        "they are the same at every epoch, and all of them count."
    )


def _table(facts: Mapping[str, Any]) -> str:
    shown = {
        "generator": facts["name"],
        "commit": facts["revision"],
        "weights": f"sha256 {facts['sha256']}",
        "images per class": facts["per_class"],
        "seed": facts["seed"],
        "draw": _draw(facts),
        "stages": facts["stage"] and f"the first {facts['stage']}",
        "levers": facts["levers"],
        "mean of each channel, for normalisation": ", ".join(f"{value:g}" for value in facts["mean"]),
        "deviation, likewise": ", ".join(f"{value:g}" for value in facts["std"]),
    }
    rows = [f"| {name} | {escape(value)} |" for name, value in shown.items() if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _draw(facts: Mapping[str, Any]) -> str:
    if facts["stored"]:
        return "the images that the generator stores"
    if facts["draw"] == "fixed":
        return "fixed"
    return "fresh, epoch 0" if facts["draws"] == 1 else f"fresh, epochs 0 to {facts['draws'] - 1}"


def _classes(plan: Plan, folders: Sequence[str]) -> str:
    if len(plan.classes) > MAX_CLASSES:
        return ""
    header, lines = ["label", "class"], [[str(label), name] for label, name in enumerate(plan.classes)]
    if list(folders) != list(plan.classes):
        header, lines = [*header, "folder"], [[*line, folder] for line, folder in zip(lines, folders, strict=True)]
    text = f"## Classes\n\n{markdown_table(header, lines)}"
    if list(folders) != list(plan.classes):
        text += "\n\nReaders number folders in the order of their names, which is that of the labels here."
    return text


def _rights(source: Source) -> str:
    where = f" ({source.url})" if source.url else ""
    return f"## Rights\n\nDistilled from {escape(source.title)}{where}. {source.rights}"
