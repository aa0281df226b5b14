"""Stopping on a signal: the step ends, a checkpoint is written, and the same command resumes from it."""

import contextlib
import os
import signal
from collections.abc import Iterator

from avpipe.pipeline.core.errors import AvpipeError

# Schedulers send SIGTERM before SIGKILL; SLURM sends SIGUSR1 early with `--signal=USR1@90`.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STDERR = 2


class StoppedError(AvpipeError):
    """A training was ended by a signal; the exit code is the shell's for that signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; rerun the command to resume")
        self.exit_code = 128 + number


class StopNowError(BaseException):
    """Raised where a training can stop with a consistent state; a BaseException, so that no handler swallows it."""


class StopSignals:
    """A context manager that records signals, and restores the previous handlers on exit.

    A second Ctrl-C ends the process at once, unless there are several processes (`single_process` is false): `torchrun`
    forwards the signal that the terminal has already sent to all of them.
    """

    def __init__(self, single_process: bool):
        self._single_process = single_process
        self._number: int | None = None
        self._raising = False

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether a signal was received."""
        return self._number is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopNowError on a signal in the block, or on an earlier one; for long work that changes no state.

        Not with several processes: all must stop after the same step, or they would wait for each other forever.
        """
        self._raising = self._single_process
        try:
            self._raise_if_due()
            yield
            self._raise_if_due()  # an exception raised in a finaliser is lost
        finally:
            self._raising = False

    def stopped(self, step: int) -> StoppedError:
        """Return the error to raise after the last step; another rank may not have received the signal."""
        return StoppedError(self._number or signal.SIGTERM, step)

    def _note(self, number: int, _frame) -> None:
        again, self._number = self.received, number  # first: another signal may arrive during this method
        if number == signal.SIGINT and self._single_process:
            if again:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)
            _say("\navpipe: stopping after this step; press Ctrl-C again to stop at once\n")
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._raising and self.received:
            raise StopNowError


def _say(text: str) -> None:
    """Write to standard error without its buffer, which the main thread may hold when a signal arrives."""
    with contextlib.suppress(OSError):
        os.write(STDERR, text.encode())
