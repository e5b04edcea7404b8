"""Names: bundled generator, Hub repository or local folder -> the folder that holds it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dimdata.errors import ArgumentError, FormatError, NotFoundError, nearest
from dimdata.files import CONFIG, settled

_ZOO = Path(__file__).parent / "zoo"
_WORD = r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REVISION = r"\w[\w./+@#=,-]{0,199}"


@dataclass(frozen=True)
class Located:
    """Where a source leads: the folder, what to call the generator, and the commit it is of."""

    folder: Path
    name: str
    revision: str | None = None


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a generator, downloaded if need be; arguments and errors as in `load`."""
    return locate(source, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only).folder


def bundled() -> dict[str, Path]:
    """Return the folders of the generators that come with dimdata, by name."""
    return {config.parent.name: config.parent for config in sorted(_ZOO.glob(f"*/{CONFIG}"))}


def locate(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    check: bool = False,
) -> Located:
    """Find what `source` names; `check` as in `hub.client.download`, other arguments and errors as in `load`."""
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise ArgumentError(f"{source!r:.120} names no generator.", "Give a name such as dim-mnist, or a folder.")
    if not isinstance(source, str) or text[0] in "./~":
        if revision is not None:
            raise ArgumentError(f"A folder has no revisions; {text!r:.120} was asked for {revision!r:.80}.")
        return Located(generator_folder(Path(text)), text if text[0] in "./~" else f"./{text}")
    hint = f"For a folder write ./{text:.120}." if _exists(text) else ""
    if re.fullmatch(_WORD, text):
        zoo = bundled()
        if text in zoo and revision is None:
            return Located(zoo[text], text)
        namespace = os.environ.get("DIMDATA_NAMESPACE")
        if not namespace and text in zoo:
            raise ArgumentError(
                f"{text} is bundled and has no revisions.",
                "Give its repository as owner/name, or set DIMDATA_NAMESPACE.",
            )
        if not namespace:
            raise NotFoundError(
                f"There is no bundled generator called {text!r}.",
                hint or f"{nearest(text, zoo)} Write owner/name for the Hub, ./{text} for a folder.".strip(),
            )
        repo = f"{namespace}/{text}"
    else:
        repo = text
    require_repository(repo, hint)
    require_revision(revision)
    from dimdata.hub.client import download

    try:
        folder, commit = download(
            repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            check=check,
        )
    except NotFoundError as error:
        raise NotFoundError(error.message, hint or error.hint) from error
    return Located(folder, repo, commit)


def require_repository(repo: str, hint: str = "") -> None:
    """Raise `ArgumentError` unless `repo` can be the name of a repository on the Hub.

    The rules are the Hub's; a name becomes part of a path in the cache.
    """
    ok = re.fullmatch(f"{_WORD}/{_WORD}", repo) and not re.search(r"--|\.\.|\.git$", repo) and len(repo) <= 96
    if not ok:
        raise ArgumentError(
            f"{repo!r:.120} names no generator.",
            hint or "Write owner/name for the Hub, ./path for a folder, or the name of a bundled generator.",
        )


def require_revision(revision: str | None) -> None:
    """Raise `ArgumentError` unless `revision` can be a branch, tag or commit; it becomes part of a path."""
    if revision is None:
        return
    bad = r"\.\.|//|/\.|@\{|[./]$|\.lock(/|$)"
    if not isinstance(revision, str) or not re.fullmatch(_REVISION, revision) or re.search(bad, revision):
        raise ArgumentError(
            f"{revision!r:.80} can be no revision.", "Give a branch, a tag, or a commit of 40 hexadecimal digits."
        )


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def generator_folder(path: Path) -> Path:
    """Return the folder that holds the generator of `path`.

    Raises:
        NotFoundError: If there is no such folder.
        FormatError: If it is not the folder of a generator.
        ArgumentError: If it can be no path.
    """
    try:
        folder = settled(path.expanduser().absolute())
        exists, is_folder, has_config = folder.exists(), folder.is_dir(), (folder / CONFIG).is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null in it, a user without a home
        raise ArgumentError(f"{str(path)!r:.120} is no usable path.") from error
    if not exists:
        raise NotFoundError(f"There is no folder {str(path)!r:.200}.")
    if not is_folder:
        raise FormatError(f"{str(path)!r:.200} is a file, not the folder of a generator.")
    if not has_config:
        is_run = (folder / "generator" / CONFIG).is_file()
        raise FormatError(
            f"The folder {str(path)!r:.200} has no {CONFIG}, so it is not a dimdata generator.",
            f"The run's generator lies in {str(path / 'generator')!r:.200}." if is_run else "",
        )
    return folder
