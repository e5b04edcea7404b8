"""Downloads from the Hugging Face Hub: one commit for all files, and errors in our words."""

from __future__ import annotations

from pathlib import Path

from dimdata import __version__
from dimdata.errors import ArgumentError, DimdataError, NotFoundError, WorldError
from dimdata.files import CONFIG, HOLDOUT, MODEL


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Download a generator into the cache of `huggingface_hub`, or find it there.

    Args:
        repo_id: `owner/name`.
        revision: A branch, tag or commit; the default branch unless given.
        token: As in `huggingface_hub`.
        cache_dir: As in `huggingface_hub`.
        local_files_only: Whether to use the cache alone.

    Returns:
        The folder and the commit it is of.

    Raises:
        NotFoundError: If there is no such repository or revision, or no access to it.
        ArgumentError: If the name is malformed.
        WorldError: If the Hub cannot be reached and the cache does not hold the generator.
    """
    from huggingface_hub import resolve_revision, snapshot_download

    try:
        # Resolved once, so that config and weights cannot come from two commits, and a dead Hub is noticed at once.
        pinned = resolve_revision(
            repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        folder = snapshot_download(
            repo_id,
            revision=pinned,
            allow_patterns=[CONFIG, MODEL, HOLDOUT],
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            library_name="dimdata",
            library_version=__version__,
        )
    except Exception as error:  # the HTTP library below may raise anything of its own
        raise translate(error, repo_id, revision) from error
    return Path(folder), pinned.resolved


def translate(error: Exception, repo_id: str, revision: str | None = None) -> DimdataError:
    """Return our error for one of a download."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return ArgumentError(f"{repo_id!r:.120} is no name of a repository.", "A name looks like owner/dim-mnist.")
    if isinstance(error, errors.GatedRepoError):
        return NotFoundError(
            f"Access to {repo_id} must be asked for.",
            f"Ask on {constants.ENDPOINT}/{repo_id}, then run: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"There is no repository {repo_id} on the Hub, or it is private.",
            "Check the name; for a private one run: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(
            f"The repository {repo_id} has no revision {revision!r:.80}.", "Give one of its branches, tags or commits."
        )
    if isinstance(error, errors.RevisionResolutionError | errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return WorldError(
            f"{repo_id} is not in the cache, and the Hub was not asked or did not answer.",
            "Load it once while online (HF_HUB_OFFLINE unset, local_files_only=False).",
        )
    detail = " ".join(str(error).split())
    return WorldError(
        f"Downloading {repo_id} failed: {type(error).__name__}: {detail:.160}.", "Try again later; check the network."
    )
