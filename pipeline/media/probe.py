"""Checks whether a file can be a clip, from its packets, without decoding.

The check is that of the extraction, so a file gets the same verdict by every way in. A server can break off, or send
a page or something else instead of the video. Whether that is the fault of the clip, the connection or the session
decides whether it is retried.
"""

import math
from pathlib import Path

from avpipe.pipeline.media.container import END_TOLERANCE_S
from avpipe.pipeline.media.errors import MediaError
from avpipe.pipeline.media.survey import Clip, open_clip
from avpipe.pipeline.media.truncation import cut_off

PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")
WEB_PAGE = "a web page came instead of a video (a log-in, consent or error page, or a wrong address)"
# Seconds of sound that every sample needs around its centre.
SOUND_S = 3.0


def check_clip(path: Path, length_s: float | None) -> None:
    """Raise MediaError unless `path` is a video with sound that may be a clip of `length_s` seconds (None: any length).

    Reasons: setup for a web page or a missing decoder, network for a file truncated before its middle, no_video,
    no_audio, too_short, else corrupt. A clip may lack its end, if its video ends there, but must reach its middle,
    the frame that the boxes were drawn on.
    """
    check_bytes(path)
    try:
        with open_clip(path) as clip:
            _check(clip, length_s)
    except MediaError as error:
        if error.reason == "corrupt" and cut_off(path):
            raise MediaError("network", f"the file is cut off: {error.detail}") from None
        raise


def check_bytes(path: Path) -> None:
    """Raise MediaError for a web page, an empty file, and (disk) for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise MediaError("disk", f"{path}: {error.strerror}") from None
    if head.lstrip().lower().startswith(PAGE_STARTS):
        raise MediaError("setup", WEB_PAGE)
    if not head.strip(b"\0"):
        raise MediaError("corrupt", "the file is empty or begins with zeros")


def _check(clip: Clip, length_s: float | None) -> None:
    centre_s = min(clip.duration_s, length_s or math.inf) / 2
    clip.check_until(centre_s, centre_s + SOUND_S / 2)
    if length_s is not None and clip.duration_s < length_s / 2 - END_TOLERANCE_S:
        raise MediaError("too_short", f"the file lasts {clip.duration_s:.2f} s of {length_s:.0f} s")
    begins_s = float(clip.picture.start - clip.start)
    if begins_s > centre_s:
        raise MediaError("corrupt", f"the picture begins at {begins_s:.2f} s, behind the centre")
