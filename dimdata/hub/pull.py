"""From the Hub into the cache: a generator that is whole, checked, and pinned to one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dimdata.artifact import load
from dimdata.errors import ArgumentError, FormatError
from dimdata.files import FILES
from dimdata.generators.base import Generator
from dimdata.names import locate


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        name: The bundled name, or `owner/name`.
        folder: Where it lies; nothing in it may be changed, for it is shared.
        revision: The commit; none for a bundled generator.
        files: Bytes of each file.
        line: The Python that loads exactly this.
    """

    name: str
    folder: Path
    revision: str | None
    files: dict[str, int]
    line: str


def pull(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Pulled:
    """Download a generator into the cache and check it whole.

    What is cached already is compared with the digests that the Hub announces, and downloaded again where it is
    damaged. With HF_HUB_OFFLINE set, what is cached is checked against the digest in its own config.

    Args:
        name: `owner/name` on the Hub, or the name of a bundled generator.
        revision: Branch, tag or commit on the Hub.
        token: As in `huggingface_hub`.
        cache_dir: As in `huggingface_hub`.

    Returns:
        Where it is, and the line of Python that loads it.

    Raises:
        ArgumentError: If `name` is a local folder or malformed.
        NotFoundError: If there is no such repository or revision.
        AccessError: If there is no access to it.
        FormatError: If it is not a generator, is too large, or is damaged.
        WorldError: If the disk or the network fails.
    """
    if not isinstance(name, str) or name[:1] in (".", "/", "~"):
        raise ArgumentError(f"{name!r:.120} is a folder, and here already.", "Give owner/name to pull it from the Hub.")
    found = locate(name, revision=revision, token=token, cache_dir=cache_dir, check=True)
    try:
        generator = load(found.folder)
    except FormatError as error:
        raise FormatError(f"{found.name} cannot be used: {error.message}", error.hint) from error
    files = {file: (found.folder / file).stat().st_size for file in FILES if (found.folder / file).is_file()}
    return Pulled(found.name, found.folder, found.revision, files, loading(generator, found.name, found.revision))


def loading(generator: Generator, name: str, revision: str | None) -> str:
    """Return the line of Python that loads a generator."""
    ipc = ", ipc=10" if generator.images is None else ""
    pinned = f', revision="{revision}"' if revision else ""
    return f'dataset = GeneratedDataset("{name}"{ipc}{pinned})'
