"""Downloads from the Hugging Face Hub: one commit for all files, sizes and digests checked, errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimdata import __version__
from dimdata.errors import DimdataError, FormatError, WorldError
from dimdata.files import CONFIG, HOLDOUT, MAX_JSON, MODEL, max_bytes
from dimdata.hub.boundary import Damaged, Talk, usable_token
from dimdata.hub.cache import COMMIT, NEEDED, OPTIONAL, Store, digest
from dimdata.names import require_repository, require_revision

if TYPE_CHECKING:
    from huggingface_hub import HfApi, HfFileMetadata

    from dimdata.config import ArtifactConfig

BAR_SECONDS = 2.0  # a download that is done by then shows no progress


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    check: bool = False,
) -> tuple[Path, str]:
    """Download a generator into the cache of `huggingface_hub`, or find it there.

    A commit that is in the cache is found without a request. Otherwise the revision is resolved once, and what the Hub
    announces of each file is checked before any of it is read.

    Args:
        repo_id: `owner/name`.
        revision: A branch, tag or commit; the default branch unless given.
        token: As in `huggingface_hub`.
        cache_dir: As in `huggingface_hub`.
        local_files_only: Whether to use the cache alone.
        check: Whether to compare cached files with those of the Hub, too, and to download damaged ones again.

    Returns:
        The folder and the commit it is of.

    Raises:
        NotFoundError: If there is no such repository or revision.
        AccessError: If there is no access to it.
        ArgumentError: If the name, the revision or the token is malformed.
        FormatError: If it is not a generator, is larger than the limit, or arrives damaged.
        WorldError: If the Hub cannot be reached and the cache does not hold the generator, or cannot be written.
    """
    from huggingface_hub import constants

    require_repository(repo_id)
    require_revision(revision)
    token = usable_token(token)
    store = Store(repo_id, cache_dir)
    offline = local_files_only or constants.is_offline_mode()
    if offline or (revision is not None and COMMIT.fullmatch(revision) and not check):
        commit = store.commit(revision)
        folder = store.complete(commit, certain=not offline) if commit else None
        if commit and folder:
            return folder, commit
        if offline:
            raise _not_cached(repo_id, revision, store, "local_files_only" if local_files_only else "HF_HUB_OFFLINE")
    return _Download(repo_id, revision, token, store).run(check)


def hub_api(token: str | bool | None) -> HfApi:
    """Return the client of `huggingface_hub`, which sends our name and version along."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="dimdata", library_version=__version__)


def _not_cached(repo_id: str, revision: str | None, store: Store, why: str) -> WorldError:
    at = f" at revision {revision}" if revision else ""
    setting = "local_files_only is true" if why == "local_files_only" else f"{why} is set"
    return WorldError(
        f"{repo_id}{at} is not in the cache {store.root}, and the Hub was not asked, for {setting}.",
        f"While online, run: dimdata pull {repo_id}{f' --revision {revision}' if revision else ''}",
    )


class _Download:
    """One download: all its requests go to one commit of one repository."""

    def __init__(self, repo_id: str, revision: str | None, token: str | bool | None, store: Store) -> None:
        self.repo_id, self.revision, self.token, self.store = repo_id, revision, token, store
        self.api = hub_api(token)
        self.talk = Talk(self.api, repo_id, "Downloading", revision, store.root, token)

    def run(self, check: bool) -> tuple[Path, str]:
        """Return the folder and the commit."""
        commit = self._resolve()
        if not check and (folder := self.store.complete(commit)):
            return folder, commit
        found = {name: self._look(name, commit) for name in (*NEEDED, *OPTIONAL)}
        files = {name: metadata for name, metadata in found.items() if metadata is not None}
        self._require(files, commit)
        config = self._config(self._fetch(CONFIG, commit, files[CONFIG]))
        self._agree(config, files[MODEL].size, files[MODEL].etag)
        if HOLDOUT in files:
            self._fetch(HOLDOUT, commit, files[HOLDOUT])
        model = self._fetch(MODEL, commit, files[MODEL])  # last: a commit that has it is complete
        self._agree(config, model.stat().st_size, digest(model, config.weights.sha256))
        return model.parent, commit

    def _resolve(self) -> str:
        """Return the commit of the revision; the one last seen if the Hub cannot be reached."""
        pinned = self.talk.ask(
            lambda: self.api.resolve_revision(self.repo_id, revision=self.revision, cache_dir=self.store.root)
        )
        if not COMMIT.fullmatch(pinned.resolved):
            raise WorldError(
                f"The Hub names {pinned.resolved!r:.80} as the commit of {self.repo_id}, which is none.",
                "Check HF_ENDPOINT.",
            )
        return str(pinned.resolved)

    def _look(self, name: str, commit: str) -> HfFileMetadata | None:
        """Return what the Hub announces of a file, or none if it has no such file."""
        from huggingface_hub import errors, hf_hub_url

        url = hf_hub_url(self.repo_id, name, revision=commit, endpoint=self.api.endpoint)

        def look() -> HfFileMetadata | None:
            try:
                return self.api.get_hf_file_metadata(url=url, token=self.token)
            except errors.EntryNotFoundError:
                return None

        metadata = self.talk.ask(look)
        if metadata is None:
            if name in OPTIONAL:
                self._note_absent(name, commit)
            return None
        if not metadata.etag or not _is_name(metadata.etag):  # it becomes the name of a file in the cache
            raise WorldError(
                f"The Hub names {name} of {self.repo_id} {metadata.etag!r:.80}, which is no digest.",
                "Check HF_ENDPOINT.",
            )
        return metadata

    def _note_absent(self, name: str, commit: str) -> None:
        """Let the client's cache remember that a file does not exist, so that nobody asks again."""
        from huggingface_hub import errors

        def ask() -> None:
            with contextlib.suppress(errors.RemoteEntryNotFoundError):
                self._download(name, commit)

        self.talk.ask(ask)

    def _download(self, name: str, commit: str, **options: Any) -> Path:
        """Return where the client keeps a file, once it has it."""
        from huggingface_hub import hf_hub_download

        path: str = hf_hub_download(
            self.repo_id,
            name,
            revision=commit,
            cache_dir=self.store.root,
            token=self.token,
            endpoint=self.api.endpoint,
            library_name="dimdata",
            library_version=__version__,
            **options,
        )
        return Path(path)

    def _require(self, files: Mapping[str, HfFileMetadata], commit: str) -> None:
        """Refuse what is no generator, and files that are announced larger than what is read."""
        missing = [name for name in NEEDED if name not in files]
        if missing:
            raise FormatError(
                f"The repository {self.repo_id} at {commit[:8]} has no {' and no '.join(missing)}, so it is not a "
                "dimdata generator.",
                "Check the name and the revision.",
            )
        for name, metadata in files.items():
            if metadata.size is not None and metadata.size > _limit(name):
                raise FormatError(
                    f"{name} of {self.repo_id} has {metadata.size:,} bytes; {_limit(name):,} at most are read.",
                    "" if name == CONFIG else "Set DIMDATA_MAX_BYTES higher if you trust it.",
                )

    def _config(self, path: Path) -> ArtifactConfig:
        from dimdata.config import parse_config, raw_config  # brings torch, which finding a cached file does without

        raw = raw_config(path.parent)
        if not {"format", "generator"} <= set(raw):
            raise FormatError(
                f"The {CONFIG} of {self.repo_id} has no `format` and `generator`, so it is not a dimdata generator.",
                "Check the name and the revision.",
            )
        try:
            return parse_config(raw)
        except FormatError as error:
            raise FormatError(f"{self.repo_id} cannot be used: {error.message}", error.hint) from error

    def _agree(self, config: ArtifactConfig, size: int | None, sha256: str | None) -> None:
        """Refuse weights that are not those which the config vouches for."""
        for what, expected, found in (
            ("bytes", config.weights.bytes, size),
            ("sha256", config.weights.sha256, sha256 if sha256 and len(sha256) == 64 else None),
        ):
            if found is not None and found != expected:
                raise FormatError(
                    f"{MODEL} of {self.repo_id} is not the one that its {CONFIG} describes: its {what} is {found}, "
                    f"not {expected}.",
                    "Nothing is wrong with the download; tell the owner of the repository.",
                )

    def _fetch(self, name: str, commit: str, announced: HfFileMetadata) -> Path:
        """Download a file, or find it in the cache, and compare it with the digest that the Hub announces."""
        etag = str(announced.etag)
        known = len(etag) in (40, 64) and set(etag) <= set("0123456789abcdef")  # else a mirror's own invention
        path = self.store.folder / "snapshots" / commit / name
        most = _limit(name) if announced.size is None else announced.size
        again = False

        def fetch() -> Path:
            nonlocal again
            got = self._download(name, commit, force_download=again, tqdm_class=_bounded_bar(name, self.repo_id, most))
            if known and (found := digest(got, etag)) != etag:
                again = True
                raise Damaged(name, etag, found)
            return got

        try:
            return self.talk.ask(fetch)
        except DimdataError:
            if again:
                self.store.drop(path)
            raise


def _is_name(etag: str) -> bool:
    return len(etag) <= 200 and etag[0] != "." and all(c.isascii() and (c.isalnum() or c in "._-") for c in etag)


def _limit(name: str) -> int:
    return MAX_JSON if name == CONFIG else max_bytes()


def _bounded_bar(name: str, repo_id: str, most: int) -> Any:
    """Return the client's progress bar, shown when it takes long, which ends a download of more bytes than `most`."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._received = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "desc": name, "delay": BAR_SECONDS})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            self._received += int(n or 0)
            if self._received > most:
                raise FormatError(
                    f"{name} of {repo_id} has more bytes than the {most:,} that were announced or are read.",
                    "Do not trust where it came from; check HF_ENDPOINT.",
                )
            return super().update(n)

    return Bar
