"""`dimdata push`: a generator to the Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dimdata.cli import options, output


def run(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a generator.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="BRANCH", help="Made if it does not exist. [default: the default branch]"),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Set on the commit, such as v1.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list what would be sent; ask the Hub for nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Upload a generator to the Hub in one commit, and print its address and the line of Python that loads it.

    The folder is checked first. Nothing is sent twice, and nothing is overwritten that someone else pushed meanwhile.
    Log in with `hf auth login`, or set HF_TOKEN.

    Example: dimdata push ./runs/mine/generator owner/dim-mine --tag v1
    """
    from dimdata.hub.push import push

    pushed = push(
        folder,
        repository,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        tag=tag,
        dry_run=dry_run,
    )
    for name in pushed.left_out:
        output.note(f"Left out: {name} is not part of a generator.")
    if json:
        facts = asdict(pushed)
        output.emit_json({**facts, "python": facts.pop("line"), "dry_run": dry_run})
        return
    if dry_run:
        output.table(("file", "bytes"), [(name, f"{size:,}") for name, size in pushed.files.items()])
        output.note(f"Nothing was sent. {len(pushed.files)} files would go to {pushed.repo_id}.")
        return
    output.line(pushed.url)
    output.line(pushed.line)
    if pushed.changed:
        output.note(f"Committed: {', '.join(pushed.changed)}.")
    else:
        output.note("Everything was there already: no commit was made.")
