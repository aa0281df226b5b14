"""Clip ids from file names, in the forms that download tools use."""

import re

from avpipe.pipeline.core.ids import CLIP_ID

# <id>_<seconds> or <id>_<start ms>_<end ms>; the id is the first eleven characters and may itself contain '_'.
TIMES = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{1,9})(?:_([0-9]{1,9}))?", re.ASCII)
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".flv", ".ts", ".mpg", ".mpeg", ".ogv", ".ogg", ".wmv",
    ".asf",
)  # fmt: skip


def is_video_name(name: str) -> bool:
    """Whether a file name has a video extension, in any case."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def clip_id_of(name: str) -> str | None:
    """Return the clip id in a video's file name, or None if it has none.

    `<youtube id>_<start>.mp4` with the start in whole seconds, padded to six digits or not;
    `<youtube id>_<start>_<end>.mp4` in milliseconds, as AudioSet's tools write, the start a whole second;
    `<number>.mp4` for a Flickr clip. Any of VIDEO_SUFFIXES may replace `.mp4`.
    """
    if not is_video_name(name):
        return None
    stem = name[: name.rindex(".")]
    if match := TIMES.fullmatch(stem):
        youtube_id, start, end = match[1], int(match[2]), match[3]
        if end is not None:
            start, rest = divmod(start, 1000)
            if rest or int(end) <= start * 1000:
                return None
        stem = f"{youtube_id}_{start:06d}"
    return stem if CLIP_ID.fullmatch(stem) else None
