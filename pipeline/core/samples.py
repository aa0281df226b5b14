"""The format of a sample, shared by cache, shards and trainer: its members, their tar, and the index of their offsets.

A sample is {member name: bytes} under one key, the clip id. In the tar a member is the file `<clip_id>.<member>`, as in
WebDataset; in the index it is a pair of columns, `<member>.offset` and `<member>.size`.
"""

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile as sf
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import CLIP_ID

# Ten minutes at 48 kHz; a clip has ten seconds, but a header may claim days, and silence compresses well.
MOST_SAMPLES = 10 * 60 * 48_000
FRAME, AUDIO, META = "frame.jpg", "audio.flac", "meta.json"
# Far above the meta.json of any clip.
MAX_META_BYTES = 1 << 16
TAR_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,200}\.tar", re.ASCII)


def feature_member(name: str) -> str:
    """Return the member name of a feature, e.g. logspec.npy."""
    return f"{name}.npy"


def encode_jpeg(rgb_HW3: np.ndarray, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb_HW3).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_flac(pcm_i16: np.ndarray, sample_rate_hz: int) -> bytes:
    """Encode (N,) int16 mono as FLAC, lossless."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm_i16, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """Decode to (N,) int16 mono. Raises ValueError for other audio or above MOST_SAMPLES, RuntimeError for damage."""
    with sf.SoundFile(io.BytesIO(data)) as file:
        if file.channels != 1 or file.frames > MOST_SAMPLES:
            raise ValueError(f"{file.channels} channels of {file.frames:,} samples, not 1 of at most {MOST_SAMPLES:,}")
        return file.read(dtype="int16")


def encode_npy(array: np.ndarray) -> bytes:
    """Encode an array as .npy, version 1.0, in C order, which a loader copies at full speed."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def encode_json(value: dict) -> bytes:
    """Encode as compact JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sample_sha256(members: dict[str, bytes]) -> str:
    """Return the hash of a sample: names, sizes and bytes of its members, sorted by name."""
    whole = hashlib.sha256()
    for name in sorted(members):
        whole.update(f"{name}\0{len(members[name])}\0".encode())
        whole.update(members[name])
    return whole.hexdigest()


class TarWriter:
    """Writes samples to a tar whose bytes depend only on the samples, and keeps an index row for each."""

    def __init__(self, path: Path):
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by __exit__
        self.rows: list[dict] = []

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(self, *_) -> None:
        self._tar.close()

    def add(self, clip_id: str, members: dict[str, bytes]) -> dict:
        """Append a sample, members sorted by name; return its index row, also kept in `rows`."""
        row = {"clip_id": clip_id, "sha256": sample_sha256(members)}
        for name in sorted(members):
            header = tarfile.TarInfo(f"{clip_id}.{name}")  # time, owner and group stay at zero
            header.size = len(members[name])
            row[f"{name}.offset"] = self._tar.offset + tarfile.BLOCKSIZE
            row[f"{name}.size"] = header.size
            self._tar.addfile(header, io.BytesIO(members[name]))
        self.rows.append(row)
        return row


def index_schema(members: list[str], extra: list[pa.Field] = ()) -> pa.Schema:
    """Return the columns of an index: clip_id, sha256, `extra`, then offset and size of each member, sorted by name."""
    fields = [pa.field("clip_id", pa.string()), pa.field("sha256", pa.string()), *extra]
    for name in sorted(members):
        fields += [pa.field(f"{name}.offset", pa.int64()), pa.field(f"{name}.size", pa.int64())]
    return pa.schema(fields)


def index_members(schema: pa.Schema) -> list[str]:
    """Return the names of the members that an index describes."""
    return [name.removesuffix(".offset") for name in schema.names if name.endswith(".offset")]


def read_sample(file: io.BufferedIOBase, row: dict, members: list[str]) -> dict[str, bytes]:
    """Read the members of one sample from an open tar, by the offsets of its index row.

    Raises AvpipeError if the bytes do not have the hash of the index.
    """
    sample = {}
    for name in members:
        offset, size = row[f"{name}.offset"], row[f"{name}.size"]
        if offset >= 0 and size >= 0:  # an index is untrusted
            file.seek(offset)
            sample[name] = file.read(size)
    if sample_sha256(sample) != row["sha256"]:
        raise AvpipeError(f"{file.name}: sample {row['clip_id']} is damaged; remove this file and run the stage again")
    return sample


def check_tar_name(name: str) -> str:
    """Return a tar's file name from an index, or raise AvpipeError if it could lead out of the folder."""
    if TAR_NAME.fullmatch(name):
        return name
    raise AvpipeError(f"the index names a shard {name!r}, which is not a plain file name; the index is not avpipe's")


def split_member_name(path: str) -> tuple[str, str] | None:
    """Split a file name in a tar into (clip id, member); None if it is not of that form."""
    clip_id, dot, member = path.partition(".")
    return (clip_id, member) if dot and CLIP_ID.fullmatch(clip_id) else None
