"""`dimdata pull`: a generator from the Hub into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from dimdata.cli import options, output


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A repository on the Hub (owner/name).")],
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit. [default: the default branch]")
    ] = None,
    json: options.Json = False,
) -> None:
    """Download a generator, check it, and print its folder and the line of Python that loads exactly this.

    It goes to the cache of huggingface_hub, whose variables apply: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN. What
    is damaged there is downloaded again.
    """
    from dimdata.hub.pull import pull
    from dimdata.report import size

    pulled = pull(name, revision=revision)
    if json:
        output.emit_json(
            {
                "name": pulled.name,
                "folder": str(pulled.folder),
                "revision": pulled.revision,
                "files": pulled.files,
                "python": pulled.line,
            }
        )
        return
    output.line(pulled.folder)
    output.line(pulled.line)
    where = f"at {pulled.revision}" if pulled.revision else "comes with dimdata"
    output.note(f"{pulled.name} {where}: {len(pulled.files)} files, {size(sum(pulled.files.values()))}, all checked.")
