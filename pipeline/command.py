"""Runs a command line from its first to its last moment: its streams, its exit code, the one sentence of an error.

Exit codes: 0; 1 for what a user can mend; 2 for a wrong option; 70 for a fault of avpipe; 130 after Ctrl-C.
"""

import contextlib
import io
import os
import sys
import traceback
from typing import NoReturn

import typer

from pipeline.errors import mendable

MENDABLE, FAULT, STOPPED = 1, 70, 130
REPORT = "this is a fault of avpipe, not of yours: please report it with the lines above and the command that you ran"


class _Output(io.FileIO):
    """Standard output: an error names it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


class _Messages(io.FileIO):
    """Standard error: what cannot be written there is dropped, for the work matters more."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def run(app: typer.Typer) -> NoReturn:
    """Run the command in `sys.argv` and end the process with its exit code."""
    _open_streams()
    try:
        code = _invoke(app)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = STOPPED
        _tell("stopped; what is finished is kept, the same command goes on from there")
    except Exception as error:
        code = _explain(error)
    _drop_unwritten()
    sys.exit(code)


def _invoke(app: typer.Typer) -> int:
    """The exit code. Not `app()`, which would end in silence where a pipe breaks, whichever pipe it is."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("avpipe", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _explain(error: Exception) -> int:
    """Print what is to be said about an error; returns the exit code."""
    show = getattr(error, "show", None)
    if show and hasattr(error, "exit_code"):  # a wrong option: the class is of click, of which Typer has its own copy
        show()
        return error.exit_code
    sentence = mendable(error)
    if sentence is None:
        traceback.print_exception(error)
        _tell(REPORT)
        return FAULT
    _tell(sentence)
    return getattr(error, "exit_code", MENDABLE)


def _tell(text: str) -> None:
    print(f"avpipe: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without the signs that command a terminal: names and messages in it may be untrusted."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


def _open_streams() -> None:
    """Make the standard streams fit for anything: closed ones, full ones, terminals that lack signs."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened would be standard error
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Output(1, "w", closefd=False), sys.stdout, "replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Messages(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _stream(file: io.FileIO, before: io.TextIOWrapper | None, errors: str) -> io.TextIOWrapper:
    encoding = before.encoding if before is not None else "utf-8"
    buffered = file.isatty() or isinstance(file, _Messages)
    return io.TextIOWrapper(io.BufferedWriter(file), encoding, errors, line_buffering=buffered)


def _drop_unwritten() -> None:
    """What standard output refused is not tried again by the interpreter as it ends."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
