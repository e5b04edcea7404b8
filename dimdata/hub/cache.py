"""Where `huggingface_hub` keeps a repository on disk, read without importing its HTTP client.

The layout is documented by `huggingface_hub` as its cache system: `refs/` maps revisions to commits, `snapshots/` holds
a folder for each commit whose files point into `blobs/`, and `.no_exist/` remembers which files a commit lacks. To
import the client takes longer than to load a generator, and what is pinned and cached needs no client.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dimdata.errors import WorldError
from dimdata.files import CONFIG, HOLDOUT, MODEL, world_error

COMMIT = re.compile(r"[0-9a-f]{40}")
NEEDED, OPTIONAL = (CONFIG, MODEL), (HOLDOUT,)


class Store:
    """The part of the cache that holds one repository.

    Args:
        repo_id: `owner/name`, checked by `dimdata.names`.
        cache_dir: The cache; that of `huggingface_hub` unless given.

    Attributes:
        root: The cache.
        folder: The repository's part of it.
    """

    def __init__(self, repo_id: str, cache_dir: str | Path | None = None) -> None:
        from huggingface_hub import constants

        self.root = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        self.folder = self.root / f"models--{repo_id.replace('/', '--')}"

    def commit(self, revision: str | None) -> str | None:
        """Return the commit that a revision was when it was last asked for, or none."""
        if revision is not None and COMMIT.fullmatch(revision):
            return revision
        try:
            with (self.folder / "refs" / (revision or "main")).open(encoding="ascii") as file:
                text = file.read(100).strip()
        except (OSError, ValueError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def complete(self, commit: str, *, certain: bool = True) -> Path | None:
        """Return the folder of a commit if the files of a generator are in it.

        Args:
            commit: The commit.
            certain: Whether it must also be known of each optional file that it is here or does not exist.

        Raises:
            WorldError: If the cache cannot be read.
        """
        folder, absent = self.folder / "snapshots" / commit, self.folder / ".no_exist" / commit
        try:
            if not all((folder / name).is_file() for name in NEEDED):
                return None
            known = all((folder / name).is_file() or (absent / name).is_file() for name in OPTIONAL)
        except OSError as error:
            raise world_error(error, f"Reading the cache {self.root}") from error
        return folder if known or not certain else None

    def drop(self, path: Path) -> None:
        """Forget a damaged file, so that it is not taken for the good one."""
        try:
            blob = path.resolve()
            path.unlink(missing_ok=True)
            if blob.parent == (self.folder / "blobs").resolve():
                blob.unlink(missing_ok=True)
        except OSError as error:
            raise WorldError(
                f"The damaged {path} cannot be deleted: {error.strerror or error}.", "Delete it by hand."
            ) from error


def digest(path: Path, like: str) -> str:
    """Return the digest of a file by which the Hub knows it.

    Args:
        path: The file.
        like: A digest of the kind wanted: 64 digits for sha256 (files in large storage), 40 for that of a git blob.
    """
    total = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
