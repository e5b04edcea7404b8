"""Requests to the Hub: tried again where that helps, and every failure told in our words.

This is the one place where exceptions of `huggingface_hub`, and of whichever HTTP library is below it, become ours.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dimdata.errors import (
    AccessError,
    ArgumentError,
    ConflictError,
    DimdataError,
    FormatError,
    NotFoundError,
    WorldError,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

RETRY_SECONDS = 30  # for one request, unless DIMDATA_RETRY_SECONDS says otherwise
FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
LISTED = 10  # names in a hint

Result = TypeVar("Result")

_SECRET = re.compile(r"(\bhf_)[A-Za-z0-9]{20,}|((?i:\bBearer ))[^\s'\"]+")  # a token, as an HTTP library may quote it

_log = logging.getLogger(__name__)
_jitter = random.Random()  # of our own: no global random state is touched


class Damaged(Exception):
    """A file that arrived with the wrong digest; it may be better the next time."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(f"{name} has the digest {found}, not {expected}")
        self.name, self.expected, self.found = name, expected, found


@dataclass(frozen=True)
class Talk:
    """What a request is part of; failures are told in these terms.

    Attributes:
        api: The client.
        repo_id: The repository.
        doing: What is being done, such as `Downloading`.
        revision: The revision that was asked for.
        cache: Where downloads are kept; none for uploads.
        token: What was given as a token.
    """

    api: HfApi
    repo_id: str
    doing: str
    revision: str | None = None
    cache: Path | None = None
    token: str | bool | None = field(default=None, repr=False)

    def ask(self, request: Callable[[], Result], *, again: bool = True) -> Result:
        """Return what a request returns; tried again while the Hub is busy or cuts connections.

        Args:
            request: What to do.
            again: Whether it may be done twice.

        Raises:
            DimdataError: Whatever goes wrong.
        """
        start, wait, tries = time.monotonic(), FIRST_WAIT, 1
        while True:
            try:
                return request()
            except DimdataError:
                raise
            except Exception as error:  # the HTTP library below raises what it likes
                cause = _cause(error)
                pause = _pause(cause, wait, tries) if again else None
                if pause is None or time.monotonic() - start + pause > retry_seconds():
                    raise self.translate(cause, tries) from error
                _log.warning("%s: %s; trying again in %.1f s.", self.repo_id, _brief(cause), pause)
            time.sleep(pause)
            wait, tries = min(wait * 2, LONGEST_WAIT), tries + 1

    def translate(self, error: BaseException, tries: int = 1) -> DimdataError:
        """Return our error for one of the client, or of anything below it."""
        from huggingface_hub import constants, errors

        repo, revision = self.repo_id, self.revision
        if isinstance(error, Damaged):
            kind = "sha256" if len(error.expected) == 64 else "git hash"
            return FormatError(
                f"{error.name} of {repo} arrived damaged{_times(tries)}: its {kind} is {error.found}, not "
                f"{error.expected}.",
                "Try again later; if it stays so, something between the Hub and this machine alters files.",
            )
        if isinstance(error, errors.HFValidationError):
            return ArgumentError(f"{repo!r:.120} is no name of a repository.", "A name looks like owner/dim-mnist.")
        if isinstance(error, errors.GatedRepoError):  # before the next, which it is a kind of
            return AccessError(
                f"{repo} is open only to those whom its owner lets in.",
                f"Ask for access on {constants.ENDPOINT}/{repo}; {self._log_in()}",
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            near = similar(self.api, repo)
            return NotFoundError(
                f"There is no repository {repo} on the Hub, or it is private.",
                f"{near or 'Check the name.'} If it is private, {self._log_in()}",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFoundError(
                f"The repository {repo} has no revision {revision!r:.80}.",
                revisions(self.api, repo) or "Give one of its branches, tags or commits.",
            )
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
            return NotFoundError(f"A file of {repo} is not there: {plain(error)}.", "Check the name and the revision.")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return WorldError(f"{self.doing} {repo} needs the Hub, and HF_HUB_OFFLINE is set.", "Unset HF_HUB_OFFLINE.")
        if isinstance(error, errors.HfHubHTTPError):
            return self._answered(error, error.response.status_code, tries)
        if isinstance(error, OSError) and error.errno is not None and not _is_network(error):
            return self._disk(error)
        if type(error) is ValueError and "metadata in README.md" in str(error):
            return ArgumentError(f"The Hub refuses the head of README.md: {plain(str(error).partition('.md')[2])}.")
        if _is_network(error):
            what = "cannot be reached" if _is_down(error) else "breaks connections off"
            return WorldError(
                f"The Hub at {constants.ENDPOINT} {what}{_times(tries)}: {_brief(error)}.",
                f"Check the network and HF_ENDPOINT, then try again{_cached_hint(self.cache)}.",
            )
        return WorldError(
            f"{self.doing} {repo} failed{_times(tries)}: {_brief(error)}.", "Try again later; check the network."
        )

    def _answered(self, error: HfHubHTTPError, status: int, tries: int) -> DimdataError:
        """Return our error for an answer of the Hub that has no class of its own."""
        from huggingface_hub import constants

        repo, said = self.repo_id, plain(error.server_message or "")
        if status == 401:
            return AccessError(f"The Hub does not accept this token for {repo}.", self._log_in().capitalize())
        if status == 403 and self.cache is None:
            return AccessError(
                f"The token in use may not write to {repo}{f': {said}' if said else ''}.",
                f"Make one that may write on {constants.ENDPOINT}/settings/tokens, then run: hf auth login",
            )
        if status == 403:
            return AccessError(f"The Hub refuses access to {repo}{f': {said}' if said else ''}.", self._log_in())
        if status in (409, 412):
            return self.conflict()
        if status == 429:
            return WorldError(
                f"The Hub asks for fewer requests (status 429){_times(tries)}.",
                "Wait some minutes; with a token (hf auth login) more are allowed.",
            )
        if status >= 500 or status in BUSY:
            request = f", request {plain(error.request_id)}" if error.request_id else ""
            return WorldError(
                f"The Hub is in trouble (status {status}{request}){_times(tries)}.",
                f"Try again later; https://status.huggingface.co tells more{_cached_hint(self.cache)}.",
            )
        return WorldError(
            f"{self.doing} {repo} failed: the Hub answered {status}{f': {said}' if said else ''}.",
            "Check the name, the token and HF_ENDPOINT.",
        )

    def conflict(self) -> ConflictError:
        """Return the error of a push that someone else overtook."""
        from huggingface_hub import constants

        return ConflictError(
            f"Someone else changed {self.repo_id} meanwhile; nothing was overwritten.",
            f"See {constants.ENDPOINT}/{self.repo_id}/commits/{self.revision or 'main'}, then push again.",
        )

    def _disk(self, error: OSError) -> DimdataError:
        if self.cache is None:
            return WorldError(f"{self.doing} {self.repo_id} failed: {error.strerror or error}.")
        return WorldError(
            f"The cache {self.cache} cannot take the download: {error.strerror or error}.",
            "Free some space there, or set HF_HOME to a folder that can be written.",
        )

    def _log_in(self) -> str:
        from huggingface_hub import get_token

        if isinstance(self.token, str) or (self.token is not False and get_token()):
            return "check that the token in use may read it (hf auth whoami), or log in as someone else: hf auth login"
        return "log in: hf auth login, or set HF_TOKEN"


def usable_token(token: str | bool | None) -> str | bool | None:
    """Return a token without the white space around it, such as the end of the line of a file it was read from.

    Raises:
        ArgumentError: If it holds what no token does. The message does not show it, as the HTTP library's own would.
    """
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise ArgumentError(
            "The token is empty, or has white space or other characters in it that no token has.",
            "Give it as it was made, or none for that of `hf auth login`.",
        )
    return token


def retry_seconds() -> float:
    """Return for how long one request is tried again: `DIMDATA_RETRY_SECONDS`.

    Raises:
        ArgumentError: If the variable holds no number.
    """
    text = os.environ.get("DIMDATA_RETRY_SECONDS", str(RETRY_SECONDS))
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise ArgumentError(f"DIMDATA_RETRY_SECONDS is {text!r:.80}, not a number of seconds.")
    return float(text)


def plain(text: object) -> str:
    """Return what someone else wrote as one short line without control characters, and without a token."""
    line = _SECRET.sub(r"\1\2***", " ".join(str(text).split()))
    return "".join(c if c.isprintable() else "?" for c in line)[:200].rstrip(".")


def similar(api: HfApi, repo_id: str) -> str:
    """Return a hint that names generators on the Hub whose names are close; empty if there are none, or no answer."""
    owner, _, name = repo_id.partition("/")
    known: set[str] = set()
    for author, search in ((owner, None), (None, name)):
        with contextlib.suppress(Exception):  # a hint is not worth a second failure
            found = api.list_models(filter="dimdata", author=author, search=search, limit=100)
            known.update(model.id for model in found)
    close = difflib.get_close_matches(repo_id, [plain(model) for model in known], n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def revisions(api: HfApi, repo_id: str) -> str:
    """Return a hint that names the tags and branches of a repository; empty if it does not answer."""
    with contextlib.suppress(Exception):
        refs = api.list_repo_refs(repo_id)
        tags, branches = ([plain(ref.name) for ref in group] for group in (refs.tags, refs.branches))
        return f"{_listed('Tags', tags)} {_listed('Branches', branches)}".strip()
    return ""


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}." if names else ""


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong below the client's own wrapping."""
    from huggingface_hub import errors

    while error.__cause__ is not None and (
        isinstance(error, errors.RevisionResolutionError | errors.LocalEntryNotFoundError)
        or (type(error) is ValueError and "Force download failed" in str(error))
    ):
        error = error.__cause__
    return error


def _pause(error: BaseException, wait: float, tries: int) -> float | None:
    """Return how long to wait before another try, or none if it would be in vain."""
    from huggingface_hub import errors

    if isinstance(error, Damaged) and tries > 1:
        return None
    if isinstance(error, errors.HfHubHTTPError):
        if error.response.status_code not in BUSY:
            return None
        asked = error.response.headers.get("Retry-After", "")
        return float(asked) if re.fullmatch("[0-9]{1,6}", asked) else wait * _jitter.uniform(0.5, 1)
    cut = isinstance(error, Damaged) or (_is_network(error) and not _is_down(error))
    return wait * _jitter.uniform(0.5, 1) if cut else None


def _is_network(error: BaseException) -> bool:
    """Whether a connection failed. HTTP libraries come and go below the client; their errors are known by names."""
    from huggingface_hub import errors

    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, errors.OfflineModeIsEnabled) or "LocalProtocolError" in names:  # nothing was sent
        return False
    short = type(error) is OSError and "Consistency check failed" in str(error)  # fewer bytes came than were announced
    return short or isinstance(error, ConnectionError | TimeoutError) or bool(names & {"TransportError", "gaierror"})


def _is_down(error: BaseException) -> bool:
    """Whether nobody answers there, so that asking again at once is in vain."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "gaierror"})


def _brief(error: BaseException) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}"
    return f"{type(error).__name__}: {plain(error)}" if str(error) else type(error).__name__


def _times(tries: int) -> str:
    return f", {tries} times over" if tries > 1 else ""


def _cached_hint(cache: Path | None) -> str:
    return "; what is cached loads with local_files_only=True" if cache is not None else ""
