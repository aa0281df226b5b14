"""Pace of a download: pauses between videos, pauses of the entire run, and the circuit breaker.

YouTube limits a session, not a video: such a response must neither count against the video nor be retried at once. One
pacer is shared by all threads of a run.
"""

import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock

from avpipe.pipeline.core.errors import AvpipeError

# A session limit lasts up to an hour.
PAUSE_S = 3600.0
# A server may ask for more or less, but at most a day.
MAX_PAUSE_S = 24 * 3600.0
# After this many pauses in a row without a single response, waiting is pointless.
PAUSES_IN_VAIN = 2
NOTE_EVERY_S = 60.0
# The note has to fit on a line.
NOTE_CHARACTERS = 100
# After this many equal failures in a row the clips are not the cause. A block gets worse with every request; a dead
# connection fails every clip at once, and would write off the entire list within the hour.
IN_A_ROW = {"blocks": 5, "network failures": 20, "unexplained failures": 5}
# What differs between failures of one cause: yt-dlp's `[site] id: ` and numbers.
OF_THE_VIDEO = re.compile(r"\[[^\]]*\] [^:]*: |[0-9]+")
# If a source has never worked, this many equal failures mean a wrong address rather than dead videos.
ALIKE_FROM_START = 20
KINDS = {
    "bot_check": "blocks",
    "rate_limited": "blocks",
    "setup": "blocks",
    "disk": "blocks",
    "network": "network failures",
    "timeout": "network failures",
    "unknown": "unexplained failures",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Pauses in seconds; zeros for none."""

    request_s: float = 0.0
    """Before each page request; applied by yt-dlp."""
    video_s: tuple[float, float] = (0.0, 0.0)
    """Minimum and maximum between the starts of two videos, for any number of threads."""

    @property
    def mean_video_s(self) -> float:
        """Mean time between two videos, in seconds."""
        return sum(self.video_s) / 2


NO_PACE = Pace()
# Values of yt-dlp's own `sleep` preset: about 240 videos an hour; about 300 are allowed.
YOUTUBE_PACE = Pace(request_s=0.75, video_s=(10.0, 20.0))


class Clock:
    """The real clock; tests use one that does not wait."""

    def now(self) -> float:
        """Seconds since an arbitrary fixed time."""
        return time.monotonic()

    def wait(self, stop: Event, seconds: float) -> None:
        """Wait for `seconds`, or until `stop` is set."""
        stop.wait(seconds)


class StoppedError(Exception):
    """The run ended while a thread was waiting."""


class Pacer:
    """Gives each video its turn. `on_note` is called once a minute with the rest of a pause."""

    def __init__(self, pace: Pace, clock: Clock, on_note: Callable[[str], None]):
        self._pace, self._clock, self._on_note = pace, clock, on_note
        self._stop, self._lock = Event(), Lock()
        self._jitter = random.Random(0)
        self._next_s = self._resume_s = clock.now()
        self._reason = ""
        self._pauses = self._in_vain = 0

    def next_video(self) -> int:
        """Wait for a video's turn; return the number of pauses so far. Raises StoppedError if the run ends."""
        while not self._stop.is_set():
            with self._lock:
                now = self._clock.now()
                left_s = max(self._next_s, self._resume_s) - now
                paused = self._resume_s > now
                if left_s <= 0:
                    self._next_s = now + self._jitter.uniform(*self._pace.video_s)
                    return self._pauses
            if paused:
                self._on_note(f"paused for {math.ceil(left_s / 60)} min: {self._reason}")
            self._clock.wait(self._stop, min(left_s, NOTE_EVERY_S))
        raise StoppedError

    def answered(self, turn: int) -> None:
        """Record that a video begun at `turn` got a response, good or bad: the session is not limited."""
        with self._lock:
            if turn == self._pauses:
                self._in_vain = 0

    def limited(self, turn: int, detail: str, retry_after_s: float | None) -> None:
        """Pause the run, because a video begun at `turn` met the session's limit, for an hour or as long as requested.

        Threads that meet the same limit share one pause. Raises AvpipeError after PAUSES_IN_VAIN pauses.
        """
        with self._lock:
            if turn != self._pauses:
                return
            if self._in_vain == PAUSES_IN_VAIN:
                raise AvpipeError(
                    f"stopped: {PAUSES_IN_VAIN} pauses in a row did not help (rate_limited: {detail}); "
                    "wait some hours, then run the same command again"
                )
            self._pauses += 1
            self._in_vain += 1
            self._reason = detail[:NOTE_CHARACTERS]
            pause_s = PAUSE_S if retry_after_s is None else min(max(retry_after_s, 1.0), MAX_PAUSE_S)
            self._resume_s = self._clock.now() + pause_s

    @property
    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End all waiting, now and in future."""
        self._stop.set()


class Breaker:
    """Stops a run with one kind of failure in a row, or without any success from the start."""

    def __init__(self, untried: bool = False):
        """`untried`: nothing has come from this source yet, so its address may be wrong."""
        self._kind: str | None = None
        self._count = 0
        self._first: str | None = None
        self._alike = 0 if untried else -math.inf

    def note(self, reasons: list[str | None], detail: str) -> None:
        """Count the outcomes of one video's clips, None for success. Raises AvpipeError at the limits."""
        only = reasons[-1] if len(set(reasons)) == 1 else None
        self._note_start(only, detail)
        kinds = {_kind(reason, detail) for reason in reasons}
        kind = kinds.pop() if len(kinds) == 1 else None
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        if kind and self._count >= IN_A_ROW[kind[0]]:
            raise AvpipeError(
                f"stopped after {self._count} {kind[0]} in a row ({reasons[-1]}: {detail}); "
                "wait or fix this, then run with --retry"
            )

    def _note_start(self, reason: str | None, detail: str) -> None:
        """Count failures while nothing has succeeded since the start."""
        self._first = self._first or reason
        self._alike = self._alike + 1 if reason and reason == self._first else -math.inf
        if self._alike >= ALIKE_FROM_START:
            raise AvpipeError(
                f"stopped: the first {self._alike} videos all failed alike ({reason}: {detail}), and none has ever "
                "come from this source; see whether its address is right, then run with --retry-permanent"
            )


def _kind(reason: str | None, detail: str) -> tuple[str, str] | None:
    """Return the kind of a failure; unexplained ones are of one kind only if their messages are equal."""
    kind = KINDS.get(reason)
    return kind and (kind, OF_THE_VIDEO.sub("", detail) if reason == "unknown" else "")
