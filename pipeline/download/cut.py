"""Cuts a clip out of a video exactly: re-encoded, because a stream copy could only start at a key frame."""

import ctypes
import functools
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ffmpeg

from avpipe.pipeline.media.bitstream import restart_test
from avpipe.pipeline.media.container import CONTAINER_OPTIONS, END_TOLERANCE_S, INDEXED
from avpipe.pipeline.media.crop import Crop
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.probe import check_bytes, check_clip
from avpipe.pipeline.media.shown import Geometry
from avpipe.pipeline.media.sound import is_mixable
from avpipe.pipeline.media.survey import Clip, open_clip

# Decoding an hour of 360p from its beginning takes about three minutes on one core.
TIMEOUT_S = 600.0
# Gaps in the sound of at least this many seconds become silence.
LEAST_GAP_S = 0.02
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """How ffmpeg should read a video."""

    held_s: float
    """Seconds of the clip that the video contains."""
    seek: bool
    """Whether ffmpeg may seek to the last key frame before the clip, because the flags match the bit stream."""
    streams: tuple[int, int]
    """Indices of the video and audio streams."""
    decoder: str
    """Name of the video decoder, as it precedes its error messages."""
    picture_filters: list[tuple[str, dict]]
    sound_filters: list[tuple[str, dict]]


def ffmpeg_program() -> str:
    """Return the system's ffmpeg, else the one of the imageio-ffmpeg wheel."""
    program = shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg  # only needed without a system ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


def cut_clip(video: Path, start_s: float, end_s: float, target: Path) -> None:
    """Write `target` (mp4, H.264 and AAC) with the seconds [start_s, end_s) of `video`, as far as it has them.

    The result is nearly lossless, so that the frame extracted later is that of the video; gaps in the sound become
    silence. It must start at once and be as long as expected, within half a second. Raises MediaError: too_short if
    the video ends before the middle of the clip, corrupt if it is damaged before the end of the clip or shorter than
    declared, timeout, and those of `check_bytes` and `open_clip`.
    """
    check_bytes(video)
    with open_clip(video) as clip:
        cut = _plan(clip, start_s, end_s)
    _encode(video, cut, start_s, end_s - start_s, target)
    if target.stat().st_size < 1024:  # a container without a single packet
        raise MediaError("corrupt", f"the video has nothing after {start_s:.0f} s")
    check_clip(target, length_s=None)
    with open_clip(target) as made:
        begins_s = float(made.picture.start - made.start)
        if made.duration_s < cut.held_s - END_TOLERANCE_S or begins_s > END_TOLERANCE_S:
            got = f"{begins_s:.2f} to {made.duration_s:.2f} s"
            raise MediaError("corrupt", f"the cut gave the picture from {got} of {cut.held_s:.2f} s")


def _plan(clip: Clip, start_s: float, end_s: float) -> _Cut:
    held_s = min(end_s, clip.duration_s) - start_s
    if held_s < (end_s - start_s) / 2 - END_TOLERANCE_S:
        raise MediaError("too_short", f"the video ends {max(held_s, 0):.1f} s after {start_s:.0f} s")
    try:
        clip.check_until(start_s + held_s, start_s + held_s)
    except MediaError as error:
        raise MediaError("network" if clip.broken else "corrupt", error.detail) from None
    return _Cut(
        held_s=held_s,
        seek=_flags_are_true(clip, start_s),
        streams=(clip.video.index, clip.audio.index),
        decoder=clip.video.codec_context.name,
        picture_filters=_picture_filters(clip),
        sound_filters=_sound_filters(clip),
    )


def _flags_are_true(clip: Clip, until_s: float) -> bool:
    restarts = restart_test(clip.video.codec_context)
    if restarts is None or not clip.stamped or clip.container.format.name not in INDEXED:
        return False  # without an index ffmpeg would seek imprecisely
    until_pts = (clip.start + int(until_s)) / clip.video.time_base
    early = (packet for packet in clip.pictures() if packet.pts <= until_pts)
    return all(not packet.is_discard and (not packet.is_keyframe or restarts(packet)) for packet in early)


def _picture_filters(clip: Clip) -> list[tuple[str, dict]]:
    filters = []
    if not clip.stamped:  # ffmpeg times pictures by decoding, later than intended
        filters.append(("setpts", {"expr": f"N/({clip.video.average_rate or 25})/TB"}))
    crop = Geometry.of(clip).crop
    if crop and not _crops(ffmpeg_program()):
        filters.append(("crop", _crop_arguments(crop)))
    return filters


def _crop_arguments(crop: Crop) -> dict:
    width, height = f"iw-{crop.left + crop.right}", f"ih-{crop.top + crop.bottom}"
    return {"w": width, "h": height, "x": crop.left, "y": crop.top, "exact": 1}


@functools.cache
def _crops(program: str) -> bool:
    """Whether this ffmpeg applies a container's crop itself, as versions since 7.1 do."""
    shown = subprocess.run([program, "-hide_banner", "-h", "full"], capture_output=True, stdin=subprocess.DEVNULL)
    return (
        b"-apply_cropping" in shown.stdout
        and re.search(rb"-apply_cropping .*(container|all)", shown.stdout) is not None
    )


def _sound_filters(clip: Clip) -> list[tuple[str, dict]]:
    layout = clip.audio.layout
    filters = []
    if not is_mixable(layout.name):
        count = clip.audio.channels
        mean = "+".join(f"{1 / count:.6f}*c{k}" for k in range(count))
        filters.append(("pan", {"args": f"mono|c0={'c0' if layout.name.startswith('ambisonic') else mean}"}))
    return [*filters, ("aresample", {"async": 1, "min_hard_comp": LEAST_GAP_S})]


def _encode(video: Path, cut: _Cut, start_s: float, length_s: float, target: Path) -> None:
    times = {"ss": start_s, "t": length_s}
    before, behind = (times, {}) if cut.seek else ({}, times)
    source = ffmpeg.input(f"file:{video}", **before, **CONTAINER_OPTIONS)
    picture, sound = (source[str(number)] for number in cut.streams)
    for name, arguments in cut.picture_filters:
        picture = picture.filter(name, **arguments)
    for name, arguments in cut.sound_filters:
        sound = sound.filter(name, **arguments)
    coding = {"vcodec": "libx264", "crf": 18, "preset": "veryfast", "acodec": "aac", "audio_bitrate": "128k"}
    output = ffmpeg.output(picture, sound, f"file:{target}", format="mp4", **coding, **behind)
    command = output.global_args("-nostdin", "-loglevel", "error").overwrite_output().compile(cmd=ffmpeg_program())
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, preexec_fn=_die_with_parent
        )
    except subprocess.TimeoutExpired:
        raise MediaError("timeout", f"cutting took longer than {TIMEOUT_S:.0f} s") from None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise MediaError("corrupt", f"not cut: {(lines or ['ffmpeg failed'])[-1]}")
    complaints = [line for line in lines if re.match(rf"\[[^]]*\b{re.escape(cut.decoder)} @", line)]
    if complaints:  # it conceals what it cannot decode, and the cut would look intact
        raise MediaError("corrupt", f"the video is damaged: {complaints[0].partition('] ')[2]}")


def _die_with_parent() -> None:
    """Make ffmpeg's process end with the run, however that ends; called before it starts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
