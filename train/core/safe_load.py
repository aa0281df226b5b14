"""Load files saved by torch as untrusted input: with bounded memory, verified checksums and no code execution.

torch writes a zip archive and never verifies the CRC-32 of its members. `seal` appends the SHA-256 of all preceding
bytes as the archive's comment, which other readers ignore.
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
# Checkpoints of EZ-VSL and SSL-TIE also hold NumPy scores and an argparse Namespace: plain values that run no code.
SAFE_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def seal(path: Path) -> None:
    """Append a checksum to a file that torch has just saved. Raises ValueError if it does not end as torch's do."""
    with open(path, "r+b") as file:
        file.seek(-ZIP_END_BYTES, os.SEEK_END)
        if file.read(len(ZIP_END)) != ZIP_END:
            raise ValueError(f"{path} does not end like a file saved by torch")
        file.seek(-2, os.SEEK_END)
        file.write(SEAL_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(SEAL + digest.encode())


def read_saved(path: Path) -> dict:
    """Return the dictionary that torch saved, in the zip or the legacy format, on the CPU, without running its code.

    Raises AvpipeError for a file that is missing, damaged or larger in memory than on disk, that holds other objects
    than tensors and plain values, or that is not a dictionary.
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
        raise AvpipeError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    except Exception as error:  # untrusted bytes can make the unpickler raise anything
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if unsafe:
            raise AvpipeError(
                f"{path} holds more than tensors and plain values ({unsafe[1]}), which could run code; not loaded"
            ) from None
        raise AvpipeError(f"{path} is damaged or was not saved by torch; copy or download it again") from None
    if not isinstance(content, dict):
        raise AvpipeError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; give a checkpoint")
    return content


def _why_not_a_file(path: Path) -> str:
    if path.is_dir():
        return "is a folder; give the checkpoint file in it"
    return (
        "is not a regular file; give a checkpoint file" if path.exists() else "does not exist; give a checkpoint file"
    )


def _check_bytes(path: Path) -> None:
    """Raise AvpipeError for an archive that fails a checksum or is compressed."""
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return  # torch's legacy format has neither checksums nor compression
    sealed = _is_sealed(path)
    if sealed is False:
        raise AvpipeError(f"{path} is damaged: its checksum does not match; copy it again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise AvpipeError(
                f"{path} is compressed ({path.stat().st_size:,} bytes for {claimed:,}), which torch never does; "
                "not loaded"
            )
        if sealed is None and (name := archive.testzip()) is not None:
            raise AvpipeError(f"{path} is damaged: the checksum of its member {name!r} does not match; copy it again")


def _is_sealed(path: Path) -> bool | None:
    """Return whether the checksum written by `seal` matches; None if the file has none."""
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
