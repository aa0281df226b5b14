"""A whole file as it is played: every picture, and every piece of sound, with its time."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from pipeline.media.container import complaints, prepare_decoder
from pipeline.media.errors import MediaError
from pipeline.media.sound import Sound
from pipeline.media.survey import Clip, open_clip


def play(clip: Clip, sound: bool) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, float]]:
    """Each frame of the picture, and of the `sound` if asked for, with its time in seconds.

    Frames of the picture come in growing order of time, from 0 on; damage is shown as a player shows it. Raises
    MediaError where the picture is not whole.
    """
    clip.check_until(clip.duration_s, clip.duration_s)
    for stream in (clip.video, clip.audio):
        prepare_decoder(stream.codec_context, threads="AUTO")
    order_s, last_s, heard_s = iter(clip.order_s), -math.inf, 0.0
    step_s = float(1 / (clip.video.average_rate or 25))
    for packet in itertools.chain(clip.packets(), (None,)):
        is_sound = packet is not None and packet.stream_index == clip.audio.index
        if is_sound and not sound:
            continue
        for frame in _decode(clip, packet, is_sound, sound):
            stream = clip.audio if isinstance(frame, av.AudioFrame) else clip.video
            time_s = None if frame.pts is None else float(frame.pts * stream.time_base - clip.start)
            if stream is clip.audio:
                heard_s = max(heard_s if time_s is None else time_s, 0.0)
                yield frame, heard_s
                heard_s += frame.samples / frame.sample_rate
                continue
            if not clip.stamped or time_s is None:
                time_s = next(order_s, max(last_s + step_s, 0.0))
            if time_s > max(last_s, -1e-3):
                last_s = max(time_s, 0.0)
                yield frame, last_s
    if last_s < 0:
        raise MediaError("no_video", "the video stream holds no frames")


def _decode(clip: Clip, packet: av.Packet | None, is_sound: bool, sound: bool) -> list:
    """Frames of one packet, or all that is left at the end; a packet that cannot be decoded is passed by."""
    streams = [clip.audio if is_sound else clip.video] if packet else [clip.video, *([clip.audio] if sound else [])]
    try:
        return [frame for stream in streams for frame in stream.codec_context.decode(packet)]
    except av.error.InvalidDataError:
        return []


def whole_sound(path: Path, sample_rate_hz: int) -> tuple[np.ndarray, float]:
    """((N,) int16 mono, time of the first, s) of a whole file, with silence in its gaps.

    Raises MediaError where it is not whole.
    """
    with open_clip(path) as clip:
        clip.check_until(clip.duration_s, clip.duration_s)
        with complaints() as heard:
            sound = Sound(clip.audio, sample_rate_hz, -math.inf, math.inf, heard)
            for packet in itertools.chain(clip.sounds(), (None,)):
                sound.feed(packet)
        samples_i16, first_s = sound.samples()
        if len(samples_i16) == 0:
            raise MediaError("no_audio", "the audio stream holds no samples")
        return samples_i16, first_s - float(clip.start)
