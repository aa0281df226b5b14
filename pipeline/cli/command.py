"""Runs a command line: its streams, its exit code, the message of an error.

Exit codes: 0; 1 for an error that the user can fix; 2 for a wrong option; 70 for a bug of avpipe; 130 after Ctrl-C.
"""

import contextlib
import io
import logging
import os
import sys
import traceback
from typing import NoReturn

import typer

from avpipe.pipeline.core.errors import user_message

USER_ERROR, BUG, STOPPED = 1, 70, 130
REPORT = "this is a bug in avpipe: please report it with the lines above and the command that you ran"


class _Output(io.FileIO):
    """Standard output; a write error names it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


class _Messages(io.FileIO):
    """Standard error; failed writes are dropped, because the work matters more."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _ToStandardError(logging.Handler):
    """Prints what the library logs like the command line's other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(record.getMessage())


def run(app: typer.Typer) -> NoReturn:
    """Run the command in `sys.argv` and end the process with its exit code."""
    _open_streams()
    logger = logging.getLogger("avpipe")
    logger.handlers, logger.propagate = [_ToStandardError()], False
    logger.setLevel(logging.INFO)
    try:
        code = _invoke(app)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = STOPPED
        _tell("stopped; finished work is kept, rerun the command to resume")
    except Exception as error:
        code = _explain(error)
    _drop_unwritten()
    sys.exit(code)


def _invoke(app: typer.Typer) -> int:
    """Run the app and return the exit code. `app()` itself would exit silently on any broken pipe."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("avpipe", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _explain(error: Exception) -> int:
    """Print the message for an error; return the exit code."""
    show = getattr(error, "show", None)
    if show and hasattr(error, "exit_code"):  # a wrong option, by the copy of click inside Typer
        show()
        return error.exit_code
    sentence = user_message(error)
    if sentence is None:
        traceback.print_exception(error)
        _tell(REPORT)
        return BUG
    _tell(sentence)
    return getattr(error, "exit_code", USER_ERROR)


def _tell(text: str) -> None:
    print(f"avpipe: {printable(text)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return `text` without terminal control characters, which untrusted names and messages may contain."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


def _open_streams() -> None:
    """Prepare the standard streams for anything: closed or full ones, terminals without some characters."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # otherwise the next file opened would become standard error
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
    """Keep the interpreter from retrying at exit what standard output refused."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
