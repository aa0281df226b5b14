"""The progress line of all long work: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from avpipe.pipeline.core.text import one_line

PLAIN_EVERY_S = 5.0


class ProgressLine:
    """Counts items done, failures by reason and the rate; use it as a context manager. Writes to standard error."""

    def __init__(self, what: str, total: int, unit: str = "clips", shown: bool = True):
        self.what, self.total, self.unit = what, total, unit
        self.done = self._before = 0
        self.failures: Counter = Counter()
        self.note = ""
        self._begin = self._last = time.monotonic()
        self._printed = 0
        self._bar = None
        self._shown = shown
        if shown and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            # A note may contain a server's words: no markup, no terminal sequences.
            columns += (TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total or None, note="")

    def __enter__(self) -> "ProgressLine":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()
        elif self._shown and self.done > self._printed:
            self._print()

    def set_total(self, total: int) -> None:
        """Set the total once it is known; 0 if it is unknown until the end."""
        self.total = total
        if self._bar:
            self._bar.update(self._task, total=total or None)

    def start_at(self, done: int) -> None:
        """Set what an earlier run has done: it counts as done, but not towards the rate and the time left."""
        self.done = self._before = self._printed = done
        if self._bar:
            self._bar.reset(self._task, completed=done)

    def advance(self, count: int = 1, failures: dict[str, int] | None = None, note: str = "") -> None:
        """Count `count` more items as finished, of them `failures` by reason; `note` is shown after the count."""
        self.done += count
        self.failures.update(failures or {})
        self.note = one_line(note)
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=self._text())
        elif self._shown and time.monotonic() - self._last > PLAIN_EVERY_S:
            self._print()

    def _text(self) -> str:
        parts = [self.note] if self.note else [f"{self._rate():.1f} {self.unit}/s"]
        parts += [f"{reason} {count}" for reason, count in self.failures.most_common()]
        return " · ".join(parts)

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._begin, 1e-9)

    def _print(self) -> None:
        self._last, self._printed = time.monotonic(), self.done
        left_s = (self.total - self.done) / max(self._rate(), 1e-9)
        left = f" · {left_s:.0f} s left" if self._before < self.done < self.total else ""
        count = f"{self.done}/{self.total}" if self.total else str(self.done)
        print(f"{self.what}: {count} {self.unit} · {self._text()}{left}", file=sys.stderr, flush=True)
