"""Files that torch saved, read as untrusted input: bounded, held against their checksums, and nothing in them is run.

torch writes a zip archive and never looks at the CRC-32 of its members. What `seal` has closed ends with the SHA-256 of
all before it, as the archive's comment, which other readers skip.
"""

import argparse
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from avpipe.pipeline.core.errors import AvpipeError

ZIP, ZIP_END, ZIP_END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22
SEAL = b"avpipe-sha256:"
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size * 2

_SCALAR = np.float64(0).__reduce__()[0]
_ARRAY = np.empty(0).__reduce__()[0]
# Scores beside the weights are NumPy's (EZ-VSL, SSL-TIE), settings a Namespace: plain values, no code of theirs.
SAFE_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def seal(path: Path) -> None:
    """Close a file that torch has just saved with a checksum of its own."""
    with open(path, "r+b") as file:
        file.seek(-ZIP_END_BYTES, os.SEEK_END)
        if file.read(len(ZIP_END)) != ZIP_END:
            raise ValueError(f"{path} does not end as torch's files do")
        file.seek(-2, os.SEEK_END)
        file.write(SEAL_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(SEAL + digest.encode())


def read_saved(path: Path) -> dict:
    """The dictionary that torch saved, zip or older, on the CPU; nothing is run but the rebuilding of plain values.

    Raises AvpipeError for a file that is missing, damaged, larger in memory than on the disk, holds other objects, or
    no dictionary.
    """
    if not path.is_file():
        raise AvpipeError(f"{path} {_why_not_a_file(path)}")
    try:
        _check_bytes(path)
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (AvpipeError, OSError) as error:
        if isinstance(error, AvpipeError):
            raise
        raise AvpipeError(f"{path} cannot be read ({error.strerror or error}); check it and its permissions") from None
    except Exception as error:  # foreign bytes drive the unpickler: whatever it raises, the file is no checkpoint
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if unsafe:
            raise AvpipeError(
                f"{path} holds more than tensors and plain values ({unsafe[1]}), which could run code; not loaded"
            ) from None
        raise AvpipeError(f"{path} is damaged or no file of torch's; copy or download it again") from None
    if not isinstance(content, dict):
        raise AvpipeError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; not a checkpoint")
    return content


def _why_not_a_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder; give the checkpoint file in it"
    return (
        "is not a regular file; give a checkpoint file" if path.exists() else "does not exist; give a checkpoint file"
    )


def _check_bytes(path: Path) -> None:
    """Raise AvpipeError for an archive whose bytes are not those that were written, or that unpacks to more."""
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return  # torch's older kind has neither checksums nor compression
    sealed = _is_sealed(path)
    if sealed is False:
        raise AvpipeError(f"{path} is damaged: its checksum does not fit its bytes; copy it again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise AvpipeError(
                f"{path} is compressed: {path.stat().st_size:,} bytes claim to be {claimed:,}, which torch never does; "
                "not loaded"
            )
        if sealed is None and (name := archive.testzip()) is not None:
            raise AvpipeError(f"{path} is damaged: the checksum of its part {name!r} does not fit; copy it again")


def _is_sealed(path: Path) -> bool | None:
    """Whether the file's own checksum fits; None where it has none."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < SEAL_BYTES:
            return None
        file.seek(size - SEAL_BYTES)
        marker, stated = file.read(len(SEAL)), file.read()
        if marker != SEAL:
            return None
        file.seek(0)
        digest, remaining = hashlib.sha256(), size - SEAL_BYTES
        while remaining > 0:
            block = file.read(min(remaining, 1 << 20))
            if not block:
                break
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest().encode() == stated
