"""Heat maps over any video, which show where in the picture the sound comes from, in bounded memory.

The file is read three times, for its sound, for the maps and for the new video: only the sound (at 16 kHz), the maps
and a few frames are in memory. Times are relative to the container's start, as in avpipe.pipeline.media.
Shapes: N moments, H × W positions of a map (pixels of a frame).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.progress import ProgressLine
from avpipe.pipeline.features.audio_window import window_around
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS, Spec, pcm_to_float
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.play import play, whole_sound
from avpipe.pipeline.media.shown import Geometry
from avpipe.pipeline.media.survey import open_clip
from avpipe.train.data.frames import TEST_VIEWS, normalise
from avpipe.train.localize.painting import Heat, SoundKind, atomic_video, contact_sheet, new_video
from avpipe.train.models.load import NEWEST_RUN, Model, ModelChoice, named_model

BATCH = 16
# Neighbouring moments share all but 0.2 s of 3 s or more of sound: maps in between would hardly differ.
EVERY_S = 0.2
FRAME = "squash"
SHEET_FRAMES = 8
LONG_SIDE = 1280


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMaps:
    """Maps of some moments of a video."""

    maps: np.ndarray
    """(N, H, W) float32, as the network gives them."""
    times_s: np.ndarray
    """(N,) display times of the maps' frames, increasing."""
    frames: int
    """Number of frames of the entire video."""
    end_s: float
    """Display time of the last frame."""
    size: tuple[int, int]
    """(width, height) of the output frames: even, the longer side at most 1,280 pixels."""

    def at(self, time_s: float) -> np.ndarray:
        """Return map_HW at any time, interpolated linearly between maps and constant beyond the first and last."""
        after = int(np.searchsorted(self.times_s, time_s))
        if after in (0, len(self.times_s)):
            return self.maps[min(after, len(self.times_s) - 1)]
        before_s, after_s = self.times_s[after - 1 : after + 1]
        weight = np.float32((time_s - before_s) / (after_s - before_s))
        return (1 - weight) * self.maps[after - 1] + weight * self.maps[after]

    def rate(self) -> Fraction:
        """Return the approximate number of frames per second."""
        length_s = max(self.end_s - self.times_s[0], 0.001)
        return min(max(Fraction((self.frames - 1) / length_s).limit_denominator(1001), Fraction(1)), Fraction(240))


def localize(
    root: Root,
    video: Path,
    out: Path,
    choice: ModelChoice = NEWEST_RUN,
    picture: Path | None = None,
    maps: Path | None = None,
) -> dict:
    """Write `out`, an mp4 of the video under its heat map with its original sound, whatever the suffix of the name.

    The colours span the 1st to the 99th percentile of all values of the video. `picture` is the path of a PNG of eight
    moments, `maps` that of an .npz with maps (N, H, W), float16, and times_s (N,). Returns a summary as plain values.
    Raises AvpipeError for a file that is not a complete video with sound, for a method without maps, and for outputs
    that cannot be written or would overwrite one another or the input.
    """
    choice.check_choice("object", "random-init")
    if choice.baseline == "centre":
        raise AvpipeError(
            "the baseline centre is the same disc for every frame, so there is nothing to show; use another baseline"
        )
    _check_paths(video, [path for path in (out, picture, maps) if path])
    model = named_model(root, {name: spec.digest for name, spec in SPECS.items()}, choice)
    with usable(video):
        found = video_maps(video, model)
        heat = Heat.of(found.maps)
        shown = write_video(video, found, heat, out)
    if picture:
        title = f"{video.name} · {model.run.name}"
        contact_sheet(list(shown.values()), list(shown), heat, title, picture)
    if maps:
        with atomic_video(maps) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, maps=found.maps.astype(np.float16), times_s=found.times_s)
    return {
        "video": str(video),
        "out": str(out),
        "model": model.run.name,
        **({"checkpoint": model.checkpoint} if model.checkpoint else {}),
        "feature": model.feature,
        "frames": found.frames,
        "maps": len(found.times_s),
        "width": found.size[0],
        "height": found.size[1],
        "scale": [heat.low, heat.high],
        "picture": str(picture) if picture else None,
        "maps_file": str(maps) if maps else None,
    }


def _check_paths(video: Path, outputs: list[Path]) -> None:
    if not video.is_file():
        raise AvpipeError(f"{video} {'is a folder' if video.is_dir() else 'does not exist'}; give a video file")
    for number, path in enumerate(outputs):
        if path.is_dir():
            raise AvpipeError(f"{path} is a folder; give the name of a file to write")
        if path.exists() and path.samefile(video):
            raise AvpipeError(f"{path} is the input, which is never overwritten; give another name")
        if any(path.resolve() == other.resolve() for other in outputs[:number]):
            raise AvpipeError(f"{path} is given for two outputs; give each its own name")


@contextmanager
def usable(video: Path) -> Iterator[None]:
    """Turn a MediaError in the block into an AvpipeError that names the video."""
    try:
        yield
    except MediaError as error:
        raise AvpipeError(
            f"{video} cannot be used ({error.detail}); give a complete video with picture and sound"
        ) from None


def video_maps(video: Path, model: Model) -> VideoMaps:
    """Return maps of the first frame and of each at least 0.2 s after the previous one, with the sound around it.

    Frame and feature are as in extraction and evaluation: scaled to 256 pixels, squashed to the network's square; the
    sound window has the feature's length, is shifted inside the video at its ends, and is repeated if the video is
    shorter. Raises MediaError for an unusable video, AvpipeError for a method without maps or a feature that differs
    from this version's.
    """
    spec = SPECS.get(model.feature)
    if spec is None or spec.digest != model.feature_digest:
        raise AvpipeError(
            f"{model.run} needs {model.feature} {model.feature_digest}, not this version's; train it again"
        )
    sound_i16, start_s = whole_sound(video, spec.sample_rate_hz)
    fabric = Fabric(accelerator="auto", devices=1)
    network = model.network.to(fabric.device, memory_format=torch.channels_last)
    made, times_s, batch, frames, time_s, size = [], [], [], 0, 0.0, None

    def run_batch() -> None:
        views, features = (fabric.to_device(torch.from_numpy(np.stack(arrays))) for arrays in zip(*batch, strict=True))
        made.append(network.localize(normalise(views), features.float()).float().cpu().numpy())
        line.advance(len(batch))
        batch.clear()

    with ProgressLine("maps", math.ceil(len(sound_i16) / spec.sample_rate_hz / EVERY_S), "maps") as line:
        for frame, time_s, geometry in decoded(video, sound=False):
            frames += 1
            size = size or scaled(frame, geometry).shape[1::-1]
            if times_s and time_s < times_s[-1] + EVERY_S - 1e-3:
                continue
            times_s.append(time_s)
            batch.append(
                (network_frame(frame, geometry, model.image_px), network_audio(sound_i16, time_s - start_s, spec))
            )
            if len(batch) == BATCH:
                run_batch()
        if batch:
            run_batch()
        line.set_total(line.done)
    return VideoMaps(maps=np.concatenate(made), times_s=np.array(times_s), frames=frames, end_s=time_s, size=size)


def network_frame(frame: av.VideoFrame, geometry: Geometry, px: int) -> np.ndarray:
    """Return a decoded frame, uint8 (px, px, 3), prepared like the stored frames of clips, but without compression."""
    geometry.check(frame)
    rgb_HW3 = geometry.rgb(frame, ExtractSettings().frame_short_side)
    return TEST_VIEWS[FRAME](Image.fromarray(rgb_HW3), px)


def network_audio(sound_i16: np.ndarray, centre_s: float, spec: Spec) -> np.ndarray:
    """Return the feature, float16 (1, F, T), of the sound around `centre_s` s from its start, as in extraction."""
    window_i16, _ = window_around(sound_i16, spec.samples, round(centre_s * spec.sample_rate_hz))
    return spec.compute(pcm_to_float(window_i16)).astype(np.float16)[None]


def decoded(video: Path, sound: bool) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, float, Geometry]]:
    """Yield each video frame, and audio frame if `sound`, with its time (s) and the display geometry.

    Raises MediaError if the video stream is incomplete.
    """
    with open_clip(video) as clip:
        geometry = Geometry.of(clip)
        for frame, time_s in play(clip, sound):
            yield frame, time_s, geometry


def write_video(video: Path, found: VideoMaps, heat: Heat, out: Path) -> dict[float, np.ndarray]:
    """Write the painted video with its sound re-encoded; return thumbnails of eight frames by their times."""
    positions = np.linspace(0, len(found.times_s) - 1, min(SHEET_FRAMES, len(found.times_s))).round().astype(int)
    wanted, shown = set(found.times_s[positions].tolist()), {}
    with open_clip(video) as clip:
        kind = SoundKind(rate_hz=clip.audio.codec_context.sample_rate, channels=clip.audio.codec_context.channels)
    with (
        new_video(out, found.rate(), found.size, kind) as writer,
        ProgressLine("write", found.frames, "frames") as line,
    ):
        for frame, time_s, geometry in decoded(video, sound=True):
            if isinstance(frame, av.AudioFrame):
                writer.add_sound(frame, time_s)
                continue
            painted_HW3 = heat.paint(scaled(frame, geometry, found.size), found.at(time_s))
            writer.add_frame(painted_HW3, time_s)
            if time_s in wanted:
                shown[time_s] = _thumbnail(painted_HW3)
            line.advance()
    return shown


def scaled(frame: av.VideoFrame, geometry: Geometry, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a decoded frame as displayed, uint8 (H, W, 3), with even sides, the longer at most 1,280 pixels.

    With `size`, (width, height), the frame is scaled to it, because a video may change its size midway. H.264 in 4:2:0
    needs even sides, so an odd last row or column is dropped.
    """
    shown = geometry.displayed_size(frame)
    rgb_HW3 = geometry.rgb(frame, max(2, round(min(shown) * min(1, LONG_SIDE / max(shown)))))
    height, width = (side // 2 * 2 for side in rgb_HW3.shape[:2])
    if size in (None, (width, height)):
        return np.ascontiguousarray(rgb_HW3[:height, :width])
    return np.asarray(Image.fromarray(rgb_HW3).resize(size, Image.Resampling.BICUBIC))


def _thumbnail(frame_HW3: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame_HW3)
    image.thumbnail((480, 480))
    return np.asarray(image)
