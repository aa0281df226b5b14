"""Reads what a sample is made of: the frame at a clip's centre and the sound around it."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from avpipe.pipeline.media.container import decodable
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.picture import frame_at
from avpipe.pipeline.media.shown import Geometry
from avpipe.pipeline.media.sound import sound_around
from avpipe.pipeline.media.survey import open_clip


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipMedia:
    """The result of one pass over a clip. Times are seconds from the start of the container."""

    frame: av.VideoFrame
    """The centre frame as decoded: before cropping, rotation and correction of the pixel aspect."""
    geometry: Geometry
    """How the frame is displayed."""
    frame_time_s: float
    """Presentation time of the frame."""
    duration_s: float
    """Seconds until both picture and sound have ended."""
    audio_i16: np.ndarray
    """(N,) mono samples, int16."""
    audio_start_s: float
    """Time of the first of these samples."""


def read_clip(path: Path, clip_s: float, audio_s: float, sample_rate_hz: int) -> ClipMedia:
    """Decode the centre frame of a clip, and its sound from before the window around the centre to after it.

    The centre is half of the file's duration or of `clip_s` (may be infinite), whichever is shorter. The sound reaches
    `audio_s` / 2 past the centre and is `audio_s` long, or as long as the clip has any. Raises
    MediaError with the ledger's reason, and FileNotFoundError.
    """
    with decodable(), open_clip(path) as clip:
        centre_s = min(clip.duration_s, clip_s) / 2
        clip.check_until(centre_s, centre_s + audio_s / 2)
        audio_i16, audio_start_s = sound_around(clip, centre_s, audio_s, sample_rate_hz)
        if len(audio_i16) == 0:
            raise MediaError("no_audio", "the audio stream holds no samples")
        frame, frame_time_s = frame_at(clip, centre_s)
        geometry = Geometry.of(clip)
        geometry.check(frame)
        return ClipMedia(
            frame=frame,
            geometry=geometry,
            frame_time_s=frame_time_s,
            duration_s=clip.duration_s,
            audio_i16=audio_i16,
            audio_start_s=audio_start_s,
        )
