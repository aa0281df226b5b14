"""Clip ids and split names: they come from untrusted lists and become file names, so they are checked."""

import hashlib
import re

from avpipe.pipeline.core.errors import AvpipeError

# YouTube id and start second, or the number of a Flickr photo; no dot, slash or white space.
CLIP_ID = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}|[0-9]{1,20}", re.ASCII)


SPLIT_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


def check_clip_id(text: str, where: str = "") -> str:
    """Return `text` if it is a clip id, else raise AvpipeError with `where` (file and line) in front."""
    if CLIP_ID.fullmatch(text):
        return text
    prefix = f"{where}: " if where else ""
    raise AvpipeError(
        f"{prefix}{text!r} is not a clip id (11 characters of a YouTube id, '_', six digits; or a Flickr number); "
        "correct or remove it"
    )


def youtube_id(clip_id: str) -> str | None:
    """Return the id of the video that a clip is cut from; None for a Flickr clip, which is a video of its own."""
    return None if clip_id.isdigit() else clip_id[:-7]


def video_of(clip_id: str) -> str:
    """Return what clips of one video have in common: the video's id, or a Flickr clip's own."""
    return youtube_id(clip_id) or clip_id


def check_split_name(text: str) -> str:
    """Return `text` if it can name a split, and so a folder; else raise AvpipeError."""
    if SPLIT_NAME.fullmatch(text):
        return text
    raise AvpipeError(f"{text!r} is not the name of a split; `avpipe manifest show` lists the names")


def ids_sha256(clip_ids: list[str]) -> str:
    """Return the hash that identifies a set of clips: SHA-256 of the sorted ids, one per line."""
    return hashlib.sha256("\n".join([*sorted(clip_ids), ""]).encode()).hexdigest()
