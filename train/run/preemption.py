"""Stopping: a signal lets the step end, a checkpoint follows, and the same command goes on from there."""

import contextlib
import os
import signal
from collections.abc import Iterator

from avpipe.pipeline.core.errors import AvpipeError

# SIGTERM is what schedulers send before they kill; SLURM sends SIGUSR1 early with `--signal=USR1@90`.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STDERR = 2


class StoppedError(AvpipeError):
    """A training that a signal ended; the exit code is the shell's for that signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on there")
        self.exit_code = 128 + number


class StopNowError(BaseException):
    """Raised where a training can stop with its state whole. No Exception: nothing on the way may take it for one."""


class StopSignals:
    """Takes note of the signals while it is entered, and handles them as before afterwards.

    A second Ctrl-C ends the process at once, unless it is one of several (`alone` is false): `torchrun` passes on the
    one that the terminal has sent to all.
    """

    def __init__(self, alone: bool):
        self._alone = alone
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
        """Whether one has come."""
        return self._number is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around what takes long and changes nothing: a signal raises StopNowError in it, also one from before.

        Not with several processes: all must stop after the same step, or they wait for each other for ever.
        """
        self._raising = self._alone
        try:
            self._raise_if_due()
            yield
            self._raise_if_due()  # what is raised in a finaliser is lost
        finally:
            self._raising = False

    def stopped(self, step: int) -> StoppedError:
        """What to raise after the step that was the last; on another rank the signal may not have come."""
        return StoppedError(self._number or signal.SIGTERM, step)

    def _note(self, number: int, _frame) -> None:
        again, self._number = self.received, number  # first of all: the next signal may come in the middle of this
        if number == signal.SIGINT and self._alone:
            if again:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)
            _say("\navpipe: stopping after this step; Ctrl-C again ends at once\n")
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._raising and self.received:
            raise StopNowError


def _say(text: str) -> None:
    """Write to standard error past its buffer, which the main thread may hold when a signal comes."""
    with contextlib.suppress(OSError):
        os.write(STDERR, text.encode())
