"""Opens an untrusted media file and chooses the streams that a player shows."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import av.logging
from av.codec.context import Flags as CodecFlags
from av.stream import Disposition

from avpipe.pipeline.media.errors import MediaError

# No format that references other files (playlists, concat scripts, image sequences), no network.
CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,flv,mpegts,mpeg,ogg,asf"}
MAX_STREAMS = 32
# 8192 x 8192; a decoder holds up to 17 frames of 1.5 to 6 bytes per pixel.
MAX_PIXELS = 2**26
# Seconds by which intact files differ in the ends of their streams and their declared duration.
END_TOLERANCE_S = 0.5
COMPLAINT_CHARACTERS = 80
MP4, MATROSKA, AVI, TS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts"
# Formats with an index and a duration in the header; for others FFmpeg looks at the end of the file.
INDEXED = (MP4, MATROSKA)


def open_media(path: Path, probe: dict | None = None) -> av.container.InputContainer:
    """Open an untrusted file: no format that references other files, no network, no oversized pictures."""
    # The pixel limit applies to the decoders that probe the streams while the file is opened.
    options = {"max_pixels": str(MAX_PIXELS)} | (probe or {})
    return av.open(f"file:{path}", metadata_errors="replace", container_options=CONTAINER_OPTIONS, options=options)


@contextlib.contextmanager
def decodable() -> Iterator[None]:
    """Within the block, FFmpeg's errors become MediaErrors; FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:  # FFmpeg's own is one too, and says nothing about the clip
        raise
    except av.error.FFmpegError as error:
        raise MediaError("corrupt", f"not decodable: {error.strerror}") from error


def prepare_decoder(context: av.CodecContext, threads: str | None = None) -> None:
    """Configure a decoder before its first packet; `threads` AUTO uses all cores."""
    if threads:
        context.thread_type = threads
    else:
        context.thread_count = 1  # workers are processes; frame threads would also delay skip_frame
    if context.type == "video":
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a stream may change its size midway
        context.flags |= CodecFlags.unaligned  # otherwise a left crop is moved to where copying is faster


@contextlib.contextmanager
def complaints() -> Iterator[list[tuple[int, str, str]]]:
    """Collect the errors that FFmpeg reports within the block: (level, component, message)."""
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # a second clip with the same damage causes the same message
    try:
        with av.logging.Capture() as heard:
            yield heard
    finally:
        av.logging.set_level(None)


def shown_streams(container: av.container.InputContainer) -> tuple[av.VideoStream, av.AudioStream]:
    """Return the streams that a player shows: among decodable ones the default ones, of these the largest picture and
    the most channels. Raises MediaError if there is none.
    """
    if len(container.streams) > MAX_STREAMS:
        raise MediaError("corrupt", f"{len(container.streams)} streams are too many for a clip")
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    video = _choose(videos, "video", lambda stream: stream.width * stream.height)
    audio = _choose(list(container.streams.audio), "audio", lambda stream: stream.channels)
    if video.width * video.height > MAX_PIXELS:
        raise MediaError("corrupt", f"frames of {video.width}x{video.height} pixels are too large for a clip")
    return video, audio


def _choose(streams: list, kind: str, size) -> av.stream.Stream:
    if not streams:
        raise MediaError(f"no_{kind}", f"the file has no {kind} stream")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise MediaError("setup", f"this FFmpeg has no decoder for the {kind} stream; a newer PyAV may have one")
    return max(decodable, key=lambda stream: (bool(stream.disposition & Disposition.default), size(stream)))
