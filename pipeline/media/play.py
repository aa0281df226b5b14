"""Plays an entire file: every picture and every piece of sound, with its time."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from avpipe.pipeline.media.container import complaints, prepare_decoder
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.sound import Sound
from avpipe.pipeline.media.survey import Clip, open_clip


def play(clip: Clip, sound: bool) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, float]]:
    """Yield each video frame, and each audio frame if `sound`, with its time in seconds.

    Video frames come in increasing time order from 0; damage is shown as a player would. Raises MediaError if the
    picture is incomplete.
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
    """Yield the frames of one packet, or the rest at the end; undecodable packets are skipped."""
    streams = [clip.audio if is_sound else clip.video] if packet else [clip.video, *([clip.audio] if sound else [])]
    try:
        return [frame for stream in streams for frame in stream.codec_context.decode(packet)]
    except av.error.InvalidDataError:
        return []


def whole_sound(path: Path, sample_rate_hz: int) -> tuple[np.ndarray, float]:
    """Return ((N,) int16 mono, time of the first sample in s) of an entire file, with silence in its gaps.

    Raises MediaError if it is incomplete.
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
