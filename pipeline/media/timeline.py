"""Times of packets: the extent of streams, one clock for timestamps that jump, and pictures without times."""

from fractions import Fraction

import av

# ffmpeg's own limits (fftools, ts_discontinuity_detect): a larger step back or ahead starts a new clock.
CLOCK_BACK_S, CLOCK_AHEAD_S = 0.1, 10


class Extent:
    """Start and end of a stream as shown, seconds on the file's own clock; None before its first packet."""

    def __init__(self, stream: av.stream.Stream):
        self._base = stream.time_base
        self._start: int | None = None
        self._end = 0

    def add(self, packet: av.Packet) -> None:
        """Add one packet. Times are in ticks: fractions would take a tenth of an extraction's time."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.is_discard:
            return
        end = stamp + (packet.duration or 0)
        if self._start is None:
            self._start, self._end = stamp, end
        elif stamp < self._start:
            self._start = stamp
        if end > self._end:
            self._end = end

    @property
    def start(self) -> Fraction | None:
        """Time at which the first packet is shown."""
        return None if self._start is None else self._start * self._base

    @property
    def end(self) -> Fraction | None:
        """Time at which the last packet ends."""
        return None if self._start is None else self._end * self._base


class Stamps:
    """Decoding times of a stream's packets, and whether all from the first one that has any have presentation times."""

    def __init__(self, guessed: bool):
        self.decoded: list[int | None] = []
        self._guessed, self._seen, self._lacking = guessed, False, False

    def add(self, packet: av.Packet) -> None:
        """Add the timestamps of one packet."""
        self.decoded.append(packet.dts)
        self._lacking = self._lacking or (self._seen and packet.pts is None)
        self._seen = self._seen or packet.pts is not None

    @property
    def complete(self) -> bool:
        """Whether real presentation times are available, not guessed ones."""
        return self._seen and not self._lacking and not self._guessed


def shown_in_order(video: av.VideoStream, start: Fraction, stamps: list[int | None]) -> list[float]:
    """Return display times of pictures without presentation times: one per tick, in decoder output order.

    A tick without a picture repeats the previous one, except after the first picture and in streams with reordered
    pictures, where an encoder with lookahead had nothing to write yet.
    """
    step = max(1, round(1 / (video.time_base * (video.average_rate or 25))))
    stamps = [None if video.codec_context.has_b_frames and k else stamp for k, stamp in enumerate(stamps)]
    late = stamps[1] - stamps[0] - step if len(stamps) > 1 and None not in stamps[:2] else 0
    ticks: list[int] = []
    for stamp in stamps:
        following = ticks[-1] + step if ticks else stamp or 0
        ticks.append(following if stamp is None else max(stamp - late, following))
    return [float(tick * video.time_base - start) for tick in ticks]


class Clock:
    """Joins the clocks of a stream whose timestamps jump, as ffmpeg does for formats that may."""

    def __init__(self):
        self._shift = Fraction(0)
        self._next: dict[int, Fraction] = {}

    def correct(self, packet: av.Packet) -> None:
        """Shift the timestamps of a packet to the first clock."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return
        expected, time = self._next.get(packet.stream_index), stamp * packet.time_base + self._shift
        if expected is not None and not -CLOCK_BACK_S < time - expected < CLOCK_AHEAD_S:
            self._shift += expected - time
            time = expected
        ticks = round(self._shift / packet.time_base)
        packet.dts = None if packet.dts is None else packet.dts + ticks
        packet.pts = None if packet.pts is None else packet.pts + ticks
        self._next[packet.stream_index] = time + (packet.duration or 0) * packet.time_base
