"""Pre-emption: a signal lets the step end, a checkpoint follows, and the same command goes on from there."""

import signal

from pipeline.errors import AvpipeError

# SIGTERM is what schedulers send before they kill; SLURM sends SIGUSR1 early with `--signal=USR1@90`.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedError(AvpipeError):
    """A training that a signal ended; the exit code is the shell's for that signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on there")
        self.exit_code = 128 + number


class StopSignals:
    """Takes note of the signals while it is entered, and lets them through again afterwards."""

    def __enter__(self) -> "StopSignals":
        self._number: int | None = None
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether one has come."""
        return self._number is not None

    def stopped(self, step: int) -> StoppedError:
        """What to raise after the step that was the last; on another rank the signal may not have come."""
        return StoppedError(self._number or signal.SIGTERM, step)

    def _note(self, number: int, _frame) -> None:
        self._number = number
