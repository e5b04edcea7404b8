"""What of a card is a person's, and stays when the card is made anew.

That is all between `<!-- keep -->` and `<!-- /keep -->`, and what was added to the metadata at the top. A `README.md`
that dimdata did not make is a person's altogether.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from dimdata.errors import FormatError

INVITATION = "\n<!-- What stands between these two marks stays when this card is made anew; all else is replaced. -->\n"
SEAL = "Weights: sha256 `"  # begins a line of every card that was made here
MAX_VALUES = 10_000  # of the metadata

_HEAD = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!--\s*(/?)keep\s*-->")
_NAME = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"
_LOADED = re.compile(rf'^(?:dataset = GeneratedDataset|generator = load)\("({_NAME})"', re.MULTILINE)
# Never a person's; the last three are words that `ModelCardData` takes for itself.
_OURS = ("library_name", "model-index", "model_name", "eval_results", "ignore_metadata_errors")
_LISTS = ("tags", "datasets")


@dataclass(frozen=True)
class Kept:
    """What stays of a card.

    Attributes:
        blocks: The marked texts, in order, without their marks.
        metadata: The metadata, generated values included.
        name: The name that the card tells its readers to load; empty where that is the folder it lies in.
        sha256: Digest of the weights that the card is of; empty for a card of another hand.
    """

    blocks: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    sha256: str = ""

    def text(self) -> str:
        """Return the blocks in their marks; without any, an empty one that says what it is for."""
        return "\n\n".join(f"<!-- keep -->{block}<!-- /keep -->" for block in self.blocks or (INVITATION,))

    def merged(self, generated: Mapping[str, Any], sha256: str) -> dict[str, Any]:
        """Return generated metadata with what a person added: other keys, more tags, a licence where none is known.

        Tags of a card of other weights do not count, for some of them were generated.
        """
        merged = dict(generated)
        unlicensed = generated.get("license") == "unknown"
        for key, value in self.metadata.items():
            ours = merged.get(key)
            if key in _LISTS and self.sha256 not in ("", sha256):
                continue
            if key in _LISTS and isinstance(value, list):
                merged[key] = list(dict.fromkeys([*(ours or ()), *(text for text in value if isinstance(text, str))]))
            elif key.startswith("license"):
                merged[key] = value if unlicensed else ours
            elif key not in _OURS and ours is None:
                merged[key] = value
        return merged


def kept(previous: str | None) -> Kept:
    """Return what stays of a card.

    Args:
        previous: The text of `README.md`; none where there is no card yet.

    Raises:
        FormatError: If a mark lacks its partner, or the metadata cannot be read.
    """
    text = (previous or "").replace("\r\n", "\n")
    if not text.strip():
        return Kept()
    head = _HEAD.match(text)
    metadata = _metadata(head[1]) if head else {}
    body = text[head.end() :] if head else text
    if metadata.get("library_name") != "dimdata" or f"\n{SEAL}" not in body:
        return Kept((f"\n{_MARK.sub('', body).strip()}\n",), metadata)
    loaded = _LOADED.search(body)
    sealed = re.search(rf"^{re.escape(SEAL)}([0-9a-f]{{64}})", body, re.MULTILINE)
    return Kept(_blocks(body), metadata, loaded[1] if loaded else "", sealed[1] if sealed else "")


def _blocks(body: str) -> tuple[str, ...]:
    marks = list(_MARK.finditer(body))
    if [bool(mark[1]) for mark in marks] != [False, True] * (len(marks) // 2):
        raise FormatError(
            "README.md has marks of kept text that do not pair.",
            "Each <!-- keep --> needs one <!-- /keep --> after it.",
        )
    return tuple(body[a.end() : b.start()] for a, b in zip(marks[::2], marks[1::2], strict=True))


def _metadata(text: str) -> dict[str, Any]:
    """Read the YAML of a head."""
    import yaml  # type: ignore[import-untyped]  # of huggingface_hub, which reads and writes cards by it
    from huggingface_hub import ModelCardData

    try:
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable("is not valid YAML") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise _unreadable("is not a list of names and values")
    _require_few(data)
    if taken := [key for key in data if key == "self" or hasattr(ModelCardData, key)]:
        raise _unreadable(f"has the name {taken[0]!r:.40}, which huggingface_hub uses for itself")
    return {key: value for key, value in data.items() if value is not None}


def _require_few(data: Any) -> None:
    """Raise `FormatError` for more than `MAX_VALUES` values: a few aliases can stand for any number of them."""
    count, level = 1, [data]
    while level:
        count += sum(len(_items(value)) for value in level)  # before so many are listed
        if count > MAX_VALUES:
            raise _unreadable(f"holds over {MAX_VALUES:,} values")
        level = [item for value in level for item in _items(value)]


def _items(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()


def _unreadable(why: str) -> FormatError:
    return FormatError(f"The metadata at the top of README.md {why}.", "Mend it, or remove README.md.")
