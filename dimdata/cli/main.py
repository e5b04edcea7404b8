"""`dimdata`: the commands, and the one place where failures become words and exit codes.

Nothing here imports torch: the commands do so when they run, so that help is instant.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import dimdata
from dimdata.cli import (
    compare,
    distill,
    doctor,
    evaluate,
    export,
    info,
    list,
    output,
    preview,
    pull,
    push,
    train,
    verify,
    wrap,
)
from dimdata.errors import INTERRUPTED, WORLD, DimdataError

EPILOG = """\b
First steps:
  dimdata list
  dimdata train dim-mnist --ipc 10 --epochs 100
  dimdata distill digits --minutes 1"""

app = typer.Typer(
    name="dimdata",
    help="Distilled datasets: labelled images generated from noise, to train on like a torch Dataset.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: faster, and the same in a log
    pretty_exceptions_enable=False,  # failures are told below, in one line
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, module, summary in (
    ("list", list, "List the bundled generators, or what else has a name."),
    ("info", info, "Show all that is known of a generator."),
    ("preview", preview, "Draw a grid of images, one column a class."),
    ("train", train, "Train a student on generated images, or a teacher on real ones."),
    ("evaluate", evaluate, "Score a generator beside real images."),
    ("compare", compare, "Train several kinds of students on each generator: one table, one plot."),
    ("distill", distill, "Distil real images into a generator."),
    ("wrap", wrap, "Make a generator of stored images."),
    ("export", export, "Write a draw as an image folder, safetensors, .npz or WebDataset shards."),
    ("pull", pull, "Download a generator from the Hub."),
    ("push", push, "Upload a generator to the Hub."),
    ("verify", verify, "Check a generator's files, and a score of its card."),
    ("doctor", doctor, "Show what dimdata finds on this machine, and what is wrong."),
):
    app.command(name, short_help=summary)(module.run)


def _version(asked: bool) -> None:
    if asked:
        output.line(dimdata.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Options of all commands; `--debug` is read by `main`, so that it may stand anywhere."""


class _Warnings(logging.Handler):
    """Prints what the library logs, at the moment's stderr, which a progress bar may have taken over."""

    def emit(self, record: logging.LogRecord) -> None:
        output.note(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _compiler_to_itself(debug: bool) -> Iterator[None]:
    """Keep back what PyTorch's compiler says of its own insides, which nobody who types a command can act on."""
    log = logging.getLogger("torch.utils.cpp_extension")  # that a CPU is no CUDA device
    level = log.level
    with warnings.catch_warnings():
        if not debug:
            log.setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
        try:
            yield
        finally:
            log.setLevel(level)


def _typed(hint: str, words: Sequence[str]) -> str:
    """Return a hint with arguments of the Python interface as options of the command typed: `ipc=10` as `--ipc 10`.

    Commands to copy are left as they are.
    """
    if "dimdata " in hint:
        return hint
    command = getattr(typer.main.get_command(app), "commands", {}).get(next((w for w in words if w[:1] != "-"), ""))
    options = {} if command is None else {parameter.name: parameter.opts[0] for parameter in command.params}

    def typed(found: re.Match[str]) -> str:
        option = options.get(found["name"], "")
        if not option.startswith("--"):
            return found[0]
        return f"{option} {found['value'].strip('()[]').replace(', ', ',')}"

    return re.sub(
        r"(?<!--set )(?<![\w.,/='\"-])(?P<name>[a-z_]+)=(?P<value>\([^()]*\)|\[[^\[\]]*\]|\w[\w/-]*(?:\.\w+)*)",
        typed,
        hint,
    )


def _tell(error: BaseException, debug: bool, words: Sequence[str]) -> int:
    """Print a failure and return its exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, DimdataError):
        message, hint, code = error.message, error.hint, error.exit_code
    elif _out_of_memory(error):
        message, code = f"There is too little free memory ({_first_line(error) or 'no more was given'}).", WORLD
        hint = "Stop what else uses it, ask for less at once (smaller batches, fewer images), or use --device cpu."
    elif isinstance(error, OSError) and error.strerror:
        message, hint, code = f"{error.strerror}: {error.filename or 'while reading or writing'}", "", WORLD
    else:
        message, code = f"{type(error).__name__}: {_first_line(error)}", WORLD
        hint = "" if debug else "This was not foreseen. Run the same command with --debug to see where it happened."
    output.note(f"error: {' '.join(message.split())}")
    if hint:
        output.note(f"hint: {_typed(' '.join(hint.split()), words)}")
    return code


def _at_home(word: str) -> str:
    """Return a word with the `~` of `--out=~/runs` expanded, which shells leave as it is."""
    option, equals, value = word.partition("=")
    is_path = equals and option.startswith("--") and value.startswith("~/")
    return f"{option}={Path(value).expanduser()}" if is_path else word


def _first_line(error: BaseException) -> str:
    return f"{str(error).strip().partition(chr(10))[0]:.300}"


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a device; torch stays unimported where nothing needed it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of devices
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("DefaultCPUAllocator", "out of memory")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What stands after `dimdata`; the program's own arguments unless given.

    Returns:
        The exit code: 0, 2 (the user can mend it), 1 (the world failed) or 130 (Ctrl-C).
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    handler = _Warnings(logging.WARNING)
    log = logging.getLogger("dimdata")
    log.addHandler(handler)
    try:
        words = [_at_home(word) for word in words if word != "--debug"]
        with _compiler_to_itself(debug):
            app(args=words, prog_name="dimdata", obj=words)
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
        if code == INTERRUPTED:
            output.note("Interrupted.")
        return code
    except Exception as error:  # the boundary: whatever happens is told in words
        return _tell(error, debug, words)
    finally:
        log.removeHandler(handler)
    return 0
