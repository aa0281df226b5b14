"""Heat maps painted over frames, contact sheets, and video files with H.264 and AAC through PyAV."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.text import one_line
from avpipe.pipeline.media.sound import longest_step_s, mono

COLOURS = "turbo"
OPACITY = 0.6
"""Opacity of the hottest pixels; the coldest are transparent, so that the picture stays visible."""
SHEET_COLUMNS = 4
# At 30 fps, 30000/1001 fps and most other rates a frame lasts a whole number of these ticks.
TIME_BASE = Fraction(1, 90_000)
FRAME_SAMPLES = 1024
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
BT709 = 1
LIMITED_RANGE = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """The map values that are cold and hot: one scale for the entire video, so that its frames are comparable."""

    low: float
    """Drawn transparent, like all lower values."""
    high: float
    """Drawn hottest, like all higher values."""

    @classmethod
    def of(cls, maps_NHW: np.ndarray) -> "Heat":
        """The scale from the 1st to the 99th percentile of all values, so that outliers do not set it."""
        low, high = np.percentile(maps_NHW, (1, 99))
        return cls(low=float(low), high=float(high))

    def paint(self, frame_HW3: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
        """Return the frame under its bicubically enlarged map, uint8 (H, W, 3); transparent if the scale is empty."""
        level = (map_HW.astype(np.float64) - self.low) / max(self.high - self.low, 1e-6)
        heat_HW = Image.fromarray((np.clip(level, 0, 1) * 255).round().astype(np.uint8))
        heat = heat_HW.resize(frame_HW3.shape[1::-1], Image.Resampling.BICUBIC)
        colour = heat.copy()
        colour.putpalette(_palette())
        cover = heat.point([round(OPACITY * value) for value in range(256)])
        return np.asarray(Image.composite(colour.convert("RGB"), Image.fromarray(frame_HW3), cover))


def _palette() -> bytes:
    colours = matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)
    return np.ascontiguousarray(colours[:, :3]).tobytes()


class VideoWriter:
    """An mp4 of RGB frames and sound, written to an open container."""

    def __init__(
        self, container: av.container.OutputContainer, rate: Fraction, size: tuple[int, int], sound: "SoundKind"
    ):
        self._container = container
        video = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.time_base = TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self._video = video
        self._sound = _SoundWriter(container, sound)

    def add_frame(self, frame_HW3: np.ndarray, time_s: float) -> None:
        """Add a frame, uint8, shown from `time_s` on; times must increase."""
        frame = av.VideoFrame.from_ndarray(frame_HW3, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = round(time_s / TIME_BASE), TIME_BASE
        self._container.mux(self._video.encode(frame))

    def add_sound(self, frame: av.AudioFrame, start_s: float) -> None:
        """Add decoded sound and its time, s; a gap before it is filled with silence."""
        self._container.mux(self._sound.encode(frame, start_s))

    def finish(self) -> None:
        """Flush the encoders."""
        self._container.mux(self._sound.rest())
        self._container.mux(self._video.encode(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundKind:
    """Sample rate and channels of an audio stream at its beginning."""

    rate_hz: int
    channels: int


class _SoundWriter:
    """Encodes decoded sound of any format as AAC; rates and channels that AAC does not support are converted."""

    def __init__(self, container: av.container.OutputContainer, kind: SoundKind):
        self._rate = kind.rate_hz if kind.rate_hz in AAC_RATES else 48_000
        self._layout = "mono" if kind.channels == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._stream.bit_rate = 96_000 * (1 if kind.channels == 1 else 2)
        self._resampler = self._new_resampler()
        self._next: int | None = None
        self._end_s = 0.0

    def encode(self, frame: av.AudioFrame, start_s: float) -> list[av.Packet]:
        """Return the packets that one frame of sound completes; `start_s` is its time in seconds."""
        packets = []
        if self._next is None:
            self._next = round(start_s * self._rate)
        elif start_s - self._end_s > longest_step_s(frame):
            packets = self._silence_until(start_s)
        self._end_s = start_s + frame.samples / frame.sample_rate
        frame = mono(frame)
        frame.pts = None  # between gaps samples are counted, because untrusted timestamps jitter
        try:
            return packets + self._packets(self._resampler.resample(frame))
        except ValueError:  # the sample rate or the channels change here
            packets += self._flushed()
            return packets + self._packets(self._resampler.resample(frame))

    def _silence_until(self, time_s: float) -> list[av.Packet]:
        packets = self._flushed()
        for first in range(self._next, round(time_s * self._rate), FRAME_SAMPLES):
            count = min(FRAME_SAMPLES, round(time_s * self._rate) - first)
            planes = np.zeros((1 if self._layout == "mono" else 2, count), np.float32)
            silence = av.AudioFrame.from_ndarray(planes, "fltp", self._layout)
            silence.sample_rate = self._rate
            packets += self._packets([silence])
        return packets

    def _flushed(self) -> list[av.Packet]:
        packets = self._packets(self._resampler.resample(None))
        self._resampler = self._new_resampler()
        return packets

    def rest(self) -> list[av.Packet]:
        return self._packets(self._resampler.resample(None)) + self._stream.encode(None)

    def _new_resampler(self) -> av.AudioResampler:
        return av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate, frame_size=FRAME_SAMPLES)

    def _packets(self, frames: list[av.AudioFrame]) -> list[av.Packet]:
        packets = []
        for frame in frames:
            frame.pts, frame.time_base = self._next, Fraction(1, self._rate)
            self._next += frame.samples
            packets += self._stream.encode(frame)
        return packets


@contextmanager
def new_video(path: Path, rate: Fraction, size: tuple[int, int], sound: SoundKind) -> Iterator[VideoWriter]:
    """Yield a writer of an mp4 that is renamed to `path`, whatever its suffix, when complete.

    `rate` is the approximate number of frames per second, `size` their (width, height), both even. Raises AvpipeError
    if the file cannot be written.
    """
    with (
        atomic_video(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        writer = VideoWriter(container, rate, size, sound)
        yield writer
        writer.finish()


@contextmanager
def atomic_video(path: Path) -> Iterator[Path]:
    """As `atomic_write`, but errors of writing are raised as AvpipeError."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, av.error.FFmpegError) as error:
        raise AvpipeError(f"{path} cannot be written ({error.strerror or error}); choose another path") from None


def contact_sheet(frames: list[np.ndarray], times_s: list[float], heat: Heat, title: str, path: Path) -> None:
    """Write a PNG of painted frames, uint8 (H, W, 3) of one size, with their times and the scale of the colours."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(SHEET_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    height, width = frames[0].shape[:2]
    tall = 3.2 * min(max(height / width, 0.3), 2.5) + 0.4
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 0.9, tall * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, frame, time_s in zip(axes.flat, frames, times_s, strict=False):
        axis.imshow(frame)
        axis.set_title(f"{int(time_s // 60)}:{time_s % 60:04.1f}", fontsize=9)
    colours = plt.cm.ScalarMappable(plt.Normalize(heat.low, heat.high), COLOURS)
    figure.colorbar(colours, ax=axes, shrink=0.8, label="map value")
    figure.suptitle(one_line(title), fontsize=11, parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    plt.close(figure)
    with atomic_video(path) as temporary:
        temporary.write_bytes(content.getvalue())
