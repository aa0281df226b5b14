"""Makes a sample from an existing picture and sound file, as `extract` does from a clip."""

import io
import json
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import ExifTags, Image, ImageOps

from avpipe.pipeline.core import samples
from avpipe.pipeline.exchange.export_folders import files_sha256
from avpipe.pipeline.features.audio_window import cut_window, feature_members, kept_sound
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.container import END_TOLERANCE_S

# Far above any frame or sound of a clip.
MAX_FILE_BYTES = 1 << 28
MAX_AUDIO_S = 600.0
# Formats to try on an untrusted file; none of them refers to other files or addresses.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
AUDIO_FORMATS = "wav,w64,flac,mp3,ogg,aac,mov"
# For these FFmpeg reads the duration from a header; for others it guesses.
LENGTH_FORMATS = ("flac", "mov,mp4,m4a,3gp,3g2,mj2", "w64")
XING = re.compile(rb"Xing|Info")
# Size field of a WAV whose writer could not seek back.
UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)
SIXTEEN_BITS = 65_535
NUMBER = (int, float)
META_TYPES = {
    "audio_own_s": NUMBER,
    "audio_repeated": (bool,),
    "audio_s": NUMBER,
    "audio_start_s": NUMBER,
    "duration_s": NUMBER,
    "frame_time_s": (*NUMBER, type(None)),
    "peak": NUMBER,
    "rms": NUMBER,
    "silent": (bool,),
    "source_height": (int,),
    "source_width": (int,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePair:
    """The files of one clip."""

    image: Path
    audio: Path
    meta: Path
    """Facts written by `avpipe export`; may be absent."""
    files_sha256: str | None = None
    """Hash of image and audio at export, if there is an index."""
    source_sha256: str | None = None
    """Hash of the clip that they were made from, if there is an index."""

    def read(self) -> tuple[bytes, bytes]:
        """Return the contents of image and audio. Raises MediaError for files that are too large."""
        for path in (self.image, self.audio):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise MediaError("corrupt", f"{path} has more than {MAX_FILE_BYTES:,} bytes")
        return self.image.read_bytes(), self.audio.read_bytes()

    def source_of(self, image: bytes, audio: bytes) -> str:
        """Return the clip's hash if the files are unchanged since their export, else the files' own."""
        actual = files_sha256(image, audio)
        return self.source_sha256 if self.source_sha256 and actual == self.files_sha256 else actual


def import_sample(pair: FramePair, image: bytes, audio: bytes, settings: ExtractSettings):
    """Return ({member: bytes}, note) of a pair; the note is empty, or says why its meta.json was ignored.

    The window is around the middle of the sound, or of its first `clip_s`. Raises MediaError for unusable files.
    """
    jpeg, width, height = frame_jpeg(image, settings)
    audio_i16 = decode_audio(audio, settings.sample_rate_hz)
    duration_s = len(audio_i16) / settings.sample_rate_hz
    centre_s = min(duration_s, settings.clip_s) / 2
    pcm_i16, facts = cut_window(audio_i16, 0.0, centre_s, settings)
    facts |= {
        "duration_s": round(duration_s, 6),
        "frame_time_s": None,
        "source_width": width,
        "source_height": height,
    }
    given, note = _read_meta(pair.meta, facts)
    members = {
        samples.FRAME: jpeg,
        samples.AUDIO: samples.encode_flac(pcm_i16, settings.sample_rate_hz),
        samples.META: samples.encode_json(given or facts),
    }
    sound = kept_sound(pcm_i16, given, settings) if given else (audio_i16, 0.0, centre_s)
    return members | feature_members(*sound, settings), note


def frame_jpeg(data: bytes, settings: ExtractSettings) -> tuple[bytes, int, int]:
    """Return (JPEG with the wanted short side, width and height of the given image in pixels).

    An upright RGB JPEG of that size is returned unchanged; anything else is decoded, rotated by its EXIF tag, scaled
    (bicubic, aspect kept) and encoded. An animation gives its first picture.
    """
    side = settings.frame_short_side
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            given = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            given.load()
            upright = given.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if (given.format, given.mode, min(given.size), upright) == ("JPEG", "RGB", side, True):
                return data, *given.size
            image = _rgb(given)
        except Exception as error:  # Pillow raises many kinds of errors for damage
            raise MediaError("corrupt", f"the image is not decodable: {error}") from error
    width, height = image.size
    scale = side / min(width, height)
    size = tuple(max(side, round(length * scale)) for length in (width, height))
    if size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise MediaError("corrupt", f"an image of {width}x{height} pixels cannot be a frame")
    rgb = image.resize(size, Image.Resampling.BICUBIC)
    return samples.encode_jpeg(np.asarray(rgb), settings.jpeg_quality), width, height


def _rgb(image: Image.Image) -> Image.Image:
    """Return a picture as viewers show it: upright, with 8-bit levels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's own conversion would turn everything above 255 white
        levels = np.asarray(image).astype(np.float64).clip(0, SIXTEEN_BITS) * (255 / SIXTEEN_BITS)
        image = Image.fromarray(levels.round().astype(np.uint8))
    return image.convert("RGB")


def decode_audio(data: bytes, sample_rate_hz: int) -> np.ndarray:
    """Return (N,) int16 mono of a sound file, N >= 1. Raises MediaError: no_audio or corrupt."""
    if (promised := _wav_bytes(data)) is not None and promised > len(data):
        raise MediaError("corrupt", f"the sound is cut off: {len(data):,} of {promised:,} bytes are there")
    blocks, count = [], 0
    try:
        with av.open(
            io.BytesIO(data), options={"format_whitelist": AUDIO_FORMATS}, metadata_errors="replace"
        ) as container:
            if not container.streams.audio:
                raise MediaError("no_audio", "the sound file has no audio stream")
            promised_s = _promised_s(container, data)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=sample_rate_hz)
            for frame in [*container.decode(audio=0), None]:
                for block in resampler.resample(frame):
                    blocks.append(block.to_ndarray().reshape(-1))
                    count += len(blocks[-1])
                if count > MAX_AUDIO_S * sample_rate_hz:
                    raise MediaError("corrupt", f"the sound is longer than {MAX_AUDIO_S:.0f} s: not a clip")
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: the format changes midway
        raise MediaError("corrupt", f"the sound is not decodable: {error}") from error
    if not count:
        raise MediaError("no_audio", "the sound file holds no samples")
    if count < (promised_s - END_TOLERANCE_S) * sample_rate_hz:
        raise MediaError(
            "corrupt", f"the sound is cut off: {count / sample_rate_hz:.2f} of {promised_s:.2f} s are there"
        )
    return np.concatenate(blocks)


def _wav_bytes(data: bytes) -> int | None:
    """Return the size that a WAV's header implies; None if it is not a WAV, or was written to a pipe."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    place = 12
    while place + 8 <= len(data):
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == b"data":
            return None if length in UNKNOWN_LENGTHS else place + 8 + length
        place += 8 + length + length % 2
    return None


def _promised_s(container: av.container.InputContainer, data: bytes) -> float:
    """Return the duration in a file's header, in seconds; 0 if there is none and FFmpeg would guess."""
    stream = container.streams.audio[0]
    has_length = container.format.name in LENGTH_FORMATS or (
        container.format.name == "mp3" and XING.search(data, 0, 8192)
    )
    return float(stream.duration * stream.time_base) if has_length and stream.duration else 0.0


def _read_meta(path: Path, computed: dict) -> tuple[dict | None, str]:
    """Return (facts, "") of a meta.json that fits the sound, else (None, why it is ignored; "" if absent)."""
    if not path.is_file():
        return None, ""
    if path.stat().st_size > samples.MAX_META_BYTES:
        return None, "meta.json ignored: too large"
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return None, "meta.json ignored: not readable"
    if not isinstance(facts, dict) or facts.keys() != META_TYPES.keys():
        return None, "meta.json ignored: its keys are not those of avpipe"
    for name, types in META_TYPES.items():
        if type(facts[name]) not in types or (isinstance(facts[name], float) and not math.isfinite(facts[name])):
            return None, f"meta.json ignored: {name} is no such value"
    if not 0 < facts["audio_own_s"] <= facts["audio_s"] or any(
        facts[name] != computed[name] for name in ("audio_s", "peak", "rms", "silent")
    ):
        return None, "meta.json ignored: it describes another sound"
    return facts, ""
