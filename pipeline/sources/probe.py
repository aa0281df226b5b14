"""Whether a fetched or cut file is what it should be, from its container alone: nothing is decoded.

A server can break off, send a page in place of the video, or send something else entirely. What of it is the clip's
fault, and what is the line's or the session's, decides whether it is asked again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av

from pipeline.media import END_TOLERANCE_S, MediaError

# Seconds by which the picture may begin late: some encoders write a first frame of a few frames' delay.
START_TOLERANCE_S = 0.5
# FFmpeg's names of what avpipe reads. Others can name further files or addresses, which a stranger's file must not.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts"
READ_ONLY_THIS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
WEB_PAGE = "a web page came instead of a video (a log-in, consent or error page, or a wrong address)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Times of a file's picture, in seconds."""

    start_s: float
    duration_s: float
    """Infinite where the file does not declare one."""


def probe(path: Path) -> Probe:
    """Read the container of a video with sound.

    Raises MediaError: setup for a web page, network for a file that is cut off, no_video or no_audio, else corrupt.
    """
    try:
        _check_bytes(path)
        with av.open(f"file:{path}", options=READ_ONLY_THIS, metadata_errors="replace") as container:
            return _probe(container)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError("corrupt", f"not a video: {error.strerror}") from None


def check_clip(path: Path, length_s: float | None) -> None:
    """Raise MediaError unless `path` is a video that may be a clip of `length_s` seconds (None: of any length).

    A clip that lacks its end may be all that its video holds; it must reach its middle, where the frame is that the
    boxes were drawn on.
    """
    found = probe(path)
    if found.start_s > START_TOLERANCE_S:
        raise MediaError("corrupt", f"the picture begins at {found.start_s:.2f} s")
    if length_s is not None and found.duration_s < length_s / 2 - END_TOLERANCE_S:
        raise MediaError("too_short", f"the file lasts {found.duration_s:.2f} s of {length_s:.0f} s")


def _probe(container: av.container.InputContainer) -> Probe:
    if not container.streams.video:
        raise MediaError("no_video", "the file has no video stream")
    if not container.streams.audio:
        raise MediaError("no_audio", "the file has no audio stream")
    video = container.streams.video[0]
    start_s = float((video.start_time or 0) * video.time_base) if video.time_base else 0.0
    if video.duration and video.time_base:
        return Probe(start_s=start_s, duration_s=float(video.duration * video.time_base))
    return Probe(start_s=start_s, duration_s=container.duration / av.time_base if container.duration else float("inf"))


def _check_bytes(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(512).lstrip().lower().startswith(PAGE_STARTS):
            raise MediaError("setup", WEB_PAGE)
        if _is_cut_off(file, path.stat().st_size):
            raise MediaError("network", "the file is cut off: the server broke off and did not say so")


def _is_cut_off(file: BinaryIO, size: int) -> bool:
    """Whether an mp4 ends within one of its boxes, or before the one that describes the streams."""
    offset, kinds = 0, set()
    while offset < size:
        file.seek(offset)
        head = file.read(16)
        kinds.add(head[4:8])
        if b"ftyp" not in kinds:  # no mp4
            return False
        length = int.from_bytes(head[:4])
        if length == 1:  # the true length follows, in eight bytes
            length = int.from_bytes(head[8:])
        offset = size if length == 0 else offset + max(length, 8)  # 0: to the end of the file
    return offset > size or (size > 0 and b"moov" not in kinds)
