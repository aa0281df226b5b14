"""PyAV only: the exact centre frame and the sound around it out of untrusted files, as players show and play them."""

from pipeline.media.clip import ClipMedia, read_clip
from pipeline.media.errors import MediaError

__all__ = ["ClipMedia", "MediaError", "read_clip"]
