"""From a folder to the Hub: checked first, in one commit, and never over what someone else pushed meanwhile."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dimdata import __version__
from dimdata.artifact import holdout, load, read_config
from dimdata.config import ArtifactConfig
from dimdata.errors import AccessError, ArgumentError, ConflictError, FormatError, WorldError
from dimdata.files import CARD, CONFIG, FILES, HOLDOUT, MAX_JSON, MODEL, PREVIEW, max_bytes, read_bytes, world_error
from dimdata.generators.base import Generator
from dimdata.hub.boundary import Talk, plain, usable_token
from dimdata.hub.cache import COMMIT
from dimdata.hub.client import hub_api
from dimdata.hub.pull import loading
from dimdata.hub.readme import MAX_CARD, render_card
from dimdata.names import generator_folder, require_repository, require_revision

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo

MAX_TEXT = 2**20  # bytes of a licence
MAX_PREVIEW = 16 * 2**20
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE)[A-Za-z0-9._-]{0,60}")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be.

    Attributes:
        repo_id: The repository.
        files: Bytes of each file.
        left_out: Files of the folder that are not part of a generator and stay here.
        revision: The commit; none after a dry run.
        url: Where to look at it.
        line: The Python that loads exactly this; empty after a dry run.
        changed: The files that the commit added, replaced or deleted; empty if everything was there already.
        pull_request: The address of the pull request, if one was opened.
        tag: The tag that was set.
    """

    repo_id: str
    files: dict[str, int]
    left_out: tuple[str, ...] = ()
    revision: str | None = None
    url: str = ""
    line: str = ""
    changed: tuple[str, ...] = ()
    pull_request: str | None = None
    tag: str | None = None


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a generator to the Hugging Face Hub in one commit.

    The folder is checked as `load` does before anything is sent. The card is made anew for the repository's name, and
    keeps what a person added to that of the folder. Beside the files of a generator only licences (`LICENSE*`,
    `NOTICE*`) are sent. Files of a generator that the repository has and the folder has not are deleted in the same
    commit. Where nothing differs there is no commit.

    Args:
        folder: The folder of a generator.
        repo_id: `owner/name`; made if it does not exist.
        private: Whether a new repository is private.
        revision: The branch to push to, made if it does not exist; the default branch unless given.
        create_pr: Open a pull request instead of changing the branch.
        message: Of the commit.
        tag: Set on the commit, such as `v1`.
        token: As in `huggingface_hub`; it must be allowed to write.
        dry_run: Only check the folder and say what would be sent; the Hub is not asked.

    Returns:
        The commit, its address, and the line of Python that loads it.

    Raises:
        FormatError: If the folder is not that of a whole generator.
        ArgumentError: If arguments are malformed or contradict one another or the repository.
        AccessError: If the token is absent, invalid, or may not write.
        ConflictError: If someone else changed the repository meanwhile, or the tag is taken.
        WorldError: If the disk or the network fails.
    """
    require_repository(repo_id)
    require_revision(revision)
    require_revision(tag)
    if revision is not None and COMMIT.fullmatch(revision):
        raise ArgumentError("A commit cannot be pushed to.", "Give a branch as the revision, or none.")
    if create_pr and (tag or revision not in (None, "main")):
        raise ArgumentError(
            f"A pull request goes to the default branch{' and carries no tag' if tag else ''}.",
            "Merge it first and tag then." if tag else "Leave the revision out.",
        )
    if message is not None and not message.strip():
        raise ArgumentError("The message is empty.", "Leave it out, or say what changed.")
    parcel = pack(folder, repo_id)
    if dry_run:
        return Pushed(repo_id, parcel.sizes, parcel.left_out)
    return _Push(parcel, repo_id, private, revision, create_pr, message, tag, _token(token)).run()


@dataclass(frozen=True)
class Parcel:
    """A checked generator as it is sent: all files in memory, so that what was checked is what is sent."""

    generator: Generator
    config: ArtifactConfig
    files: Mapping[str, bytes]
    left_out: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(data) for name, data in self.files.items()}


def pack(folder: str | os.PathLike[str], repo_id: str) -> Parcel:
    """Check a folder and read what is to be sent.

    Raises:
        FormatError: If it is not the folder of a whole generator, or a file in it is not what its name says.
    """
    path = generator_folder(Path(folder))
    try:
        entries = sorted(path.iterdir())
        links = [entry.name for entry in entries if entry.is_symlink() and _is_sent(entry.name)]
    except OSError as error:
        raise world_error(error, f"Reading the folder {path}") from error
    if links:  # one may lead to a file that nobody wants to publish
        raise FormatError(
            f"{links[0]} in {path} is a symbolic link; only files are pushed.",
            f"Copy the folder first: cp -rL {path} COPY",
        )
    generator = load(path)
    holdout(path)
    config = read_config(path)
    files = {entry.name: read_bytes(entry, _limit(entry.name)) for entry in entries if _is_sent(entry.name)}
    if hashlib.sha256(files[MODEL]).hexdigest() != config.weights.sha256:
        raise FormatError(f"{MODEL} in {path} changed while it was read.", "Push again when nothing writes to it.")
    if PREVIEW in files and not files[PREVIEW].startswith(_PNG):
        raise FormatError(f"{PREVIEW} in {path} is not a PNG image.", "dimdata preview makes one.")
    for name, data in files.items():
        if _LICENCE.fullmatch(name):
            _require_text(path / name, data)
    files[CARD] = render_card(path, name=repo_id).encode("utf-8")
    left_out = tuple(plain(entry.name) for entry in entries if not _is_sent(entry.name))
    return Parcel(generator, config, dict(sorted(files.items())), left_out)


def _is_sent(name: str) -> bool:
    return name in FILES or _LICENCE.fullmatch(name) is not None


def _limit(name: str) -> int:
    known = {MODEL: max_bytes(), HOLDOUT: max_bytes(), PREVIEW: MAX_PREVIEW, CONFIG: MAX_JSON, CARD: MAX_CARD}
    return known.get(name, MAX_TEXT)


def _require_text(path: Path, data: bytes) -> None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise FormatError(f"{path} is no text.", "Replace it, or take it away.")


def _token(token: str | None) -> str:
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise WorldError("A push needs the Hub, and HF_HUB_OFFLINE is set.", "Unset HF_HUB_OFFLINE.")
    found = usable_token(token) if isinstance(token, str) else get_token()
    if not found:
        raise AccessError("A push needs a token, and none is set.", "Run: hf auth login, or set HF_TOKEN.")
    return str(found)


@dataclass
class _Push:
    """One push: looks at the branch once, sends what differs, and tells its own commit from that of someone else."""

    parcel: Parcel
    repo_id: str
    private: bool
    revision: str | None
    create_pr: bool
    message: str | None
    tag: str | None
    token: str = field(repr=False)
    api: HfApi = field(init=False)
    talk: Talk = field(init=False)

    def __post_init__(self) -> None:
        self.api = hub_api(self.token)
        self.talk = Talk(self.api, self.repo_id, "Pushing to", self.revision, token=self.token)

    def run(self) -> Pushed:
        """Return what was pushed."""
        from huggingface_hub import constants

        self._prepare()
        before = self._look()
        changes = self._changes(before)
        commit, pull_request = str(before.sha), None
        if self.tag:
            self._require_free_tag(commit if not changes else None)
        if changes:
            commit, pull_request = self._commit(changes, str(before.sha))
        if self.tag:
            self._set_tag(commit)
        return Pushed(
            self.repo_id,
            self.parcel.sizes,
            self.parcel.left_out,
            revision=commit,
            url=pull_request or f"{constants.ENDPOINT}/{self.repo_id}/tree/{commit}",
            line=loading(self.parcel.generator, self.repo_id, commit),
            changed=tuple(sorted(changes)),
            pull_request=pull_request,
            tag=self.tag,
        )

    def _prepare(self) -> None:
        """Make the repository and the branch if they do not exist."""
        from huggingface_hub import errors

        def look() -> ModelInfo | None:
            try:
                return self.api.model_info(self.repo_id)
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return None

        there = self.talk.ask(look)
        if there is None:
            self.talk.ask(lambda: self.api.create_repo(self.repo_id, private=self.private, exist_ok=True))
            there = self.talk.ask(lambda: self.api.model_info(self.repo_id))  # someone may have been faster
        if self.private and not there.private:
            raise ArgumentError(
                f"{self.repo_id} exists and is public; private makes new repositories private.",
                "Push to another name, or change the visibility in the repository's settings first.",
            )
        if self.revision is None:
            return
        refs = self.talk.ask(lambda: self.api.list_repo_refs(self.repo_id))
        if self.revision in {ref.name for ref in refs.tags}:
            raise ArgumentError(f"{self.revision} is a tag of {self.repo_id}.", "Give a branch as the revision.")
        if self.revision not in {ref.name for ref in refs.branches} and not self.revision.startswith("refs/"):
            branch = self.revision
            self.talk.ask(lambda: self.api.create_branch(self.repo_id, branch=branch, exist_ok=True))

    def _look(self) -> ModelInfo:
        """Return the branch's commit and its files, as of one moment."""
        return self.talk.ask(lambda: self.api.model_info(self.repo_id, revision=self.revision, files_metadata=True))

    def _changes(self, there: ModelInfo) -> dict[str, bytes | None]:
        """Return the files that differ: their new content, or none where they are to be deleted."""
        remote = {file.rfilename: file for file in there.siblings or ()}
        changes: dict[str, bytes | None] = {}
        for name, data in self.parcel.files.items():
            file = remote.get(name)
            if file is None:
                same = False
            elif file.lfs is not None:
                same = file.lfs.sha256 == hashlib.sha256(data).hexdigest()
            else:
                same = file.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if not same:
                changes[name] = data
        return changes | {name: None for name in FILES if name in remote and name not in self.parcel.files}

    def _commit(self, changes: Mapping[str, bytes | None], parent: str) -> tuple[str, str | None]:
        """Send the changes; return the commit and the address of the pull request.

        A connection may be cut after the Hub has committed. What is there then tells whose commit it is.
        """
        if self.create_pr:
            sent = self.talk.ask(lambda: self._send(changes, parent), again=False)
            return sent.oid, sent.pr_url

        def send() -> str:
            try:
                return self._send(changes, parent).oid
            except Exception as error:
                now = self._look()
                if now.sha == parent:
                    raise
                if self._changes(now):
                    raise self.talk.conflict() from error
                return str(now.sha)

        return self.talk.ask(send), None

    def _send(self, changes: Mapping[str, bytes | None], parent: str) -> CommitInfo:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path_in_repo=name)
            if data is None
            else CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
            for name, data in changes.items()
        ]
        spec = self.parcel.config.generator
        return self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=self.message or f"Generator of {spec.dataset or 'images'} by {spec.method}",
            commit_description=f"Pushed by dimdata {__version__}.",
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=parent,
        )

    def _require_free_tag(self, commit: str | None) -> None:
        """Refuse a tag that is on another commit, before anything is sent."""
        refs = self.talk.ask(lambda: self.api.list_repo_refs(self.repo_id))
        for ref in refs.tags:
            if ref.name == self.tag and ref.target_commit != commit:
                raise ConflictError(
                    f"{self.repo_id} has a tag {self.tag}, on the commit {ref.target_commit[:8]}.",
                    "Choose another tag; to move this one, delete it on the Hub first.",
                )

    def _set_tag(self, commit: str) -> None:
        tag = str(self.tag)
        self.talk.ask(lambda: self.api.create_tag(self.repo_id, tag=tag, revision=commit, exist_ok=True))
