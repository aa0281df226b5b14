"""Decodes untrusted files with PyAV: the exact centre frame and the sound around it, as a player plays them."""

from avpipe.pipeline.media.clip import ClipMedia, read_clip
from avpipe.pipeline.media.errors import MediaError

__all__ = ["ClipMedia", "MediaError", "read_clip"]
