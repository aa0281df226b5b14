"""The times of packets: how far streams reach, one clock for stamps that jump, and pictures without times."""

from fractions import Fraction

import av

# ffmpeg's own limits (fftools, ts_discontinuity_detect): a step back by more, or one ahead by more, is a new clock.
CLOCK_BACK_S, CLOCK_AHEAD_S = 0.1, 10


class Extent:
    """From when to when a stream is shown, seconds of the file's own clock; None before its first packet."""

    def __init__(self, stream: av.stream.Stream):
        self._base = stream.time_base
        self._start: int | None = None
        self._end = 0

    def add(self, packet: av.Packet) -> None:
        """Take in the time of one packet. In ticks: fractions would take a tenth of an extraction's time."""
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
        """When the first packet is shown."""
        return None if self._start is None else self._start * self._base

    @property
    def end(self) -> Fraction | None:
        """When the last one has been shown."""
        return None if self._start is None else self._end * self._base


class Stamps:
    """Decoding times of a stream's packets, and whether all have presentation times, from the first that has one on."""

    def __init__(self, guessed: bool):
        self.decoded: list[int | None] = []
        self._guessed, self._seen, self._lacking = guessed, False, False

    def add(self, packet: av.Packet) -> None:
        """Take in the stamps of one packet."""
        self.decoded.append(packet.dts)
        self._lacking = self._lacking or (self._seen and packet.pts is None)
        self._seen = self._seen or packet.pts is not None

    @property
    def complete(self) -> bool:
        """Whether presentation times are to be had, and not guesses."""
        return self._seen and not self._lacking and not self._guessed


def shown_in_order(video: av.VideoStream, start: Fraction, stamps: list[int | None]) -> list[float]:
    """When pictures are shown that come without presentation times: one a tick, in the decoder's order.

    A tick without a picture shows the one before again, but not behind the first picture, nor anywhere in a stream with
    reordered pictures: there an encoder that looks ahead had nothing to write yet.
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
    """Joins the clocks of a stream whose stamps jump, as ffmpeg does for formats that may."""

    def __init__(self):
        self._shift = Fraction(0)
        self._next: dict[int, Fraction] = {}

    def correct(self, packet: av.Packet) -> None:
        """Move the stamps of a packet onto the first clock."""
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
