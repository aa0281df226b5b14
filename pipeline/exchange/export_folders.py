"""Writes frames and sounds as plain files, in the layouts of LVS, EZ-VSL and SLAVC, and of SSL-TIE."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.parquet import write_parquet
from avpipe.pipeline.exchange.export_split import ExportSplit
from avpipe.pipeline.manifest.tables import TABLES, Manifest, write_table

INDEX = "index.parquet"
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("sha256", pa.string()),  # of the cached sample, all members
        ("source_sha256", pa.string()),  # of the file that the sample was made from
        ("files_sha256", pa.string()),  # of the exported frame and sound, so that an import notices changes
    ]
)


def files_sha256(image: bytes, audio: bytes) -> str:
    """Return the SHA-256 of the bytes of an image file followed by an audio file."""
    return hashlib.sha256(image + audio).hexdigest()


def write_folders(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """Write `frames/<id>.jpg`, `audio/<id>.wav` (LVS, EZ-VSL, SLAVC), and what an import needs to restore the cache.

    That is `meta/<id>.json`, `manifest/` with the three tables cut to this split, and `index.parquet`. Frames and meta
    are the cache's bytes; the sound is its 16-bit samples, 16 kHz mono.
    """
    for name in ("frames", "audio", "meta", "manifest"):
        (folder / name).mkdir()
    index = []
    for row, sample in source.samples():
        clip_id = row["clip_id"]
        wav = folder / "audio" / f"{clip_id}.wav"
        (folder / "frames" / f"{clip_id}.jpg").write_bytes(sample[samples.FRAME])
        (folder / "meta" / f"{clip_id}.json").write_bytes(sample[samples.META])
        _write_wav(wav, sample[samples.AUDIO], source)
        files = files_sha256(sample[samples.FRAME], wav.read_bytes())
        index.append({name: row[name] for name in INDEX_SCHEMA.names[:3]} | {"files_sha256": files})
        on_sample()
    write_parquet(pa.Table.from_pylist(index, INDEX_SCHEMA), folder / INDEX)
    _write_manifest(source, folder / "manifest")
    return {}


def write_ssl_tie_train(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """Write `total_video_frames/<id>/125.jpg` and `total_video_3s_audio/<id>.wav`.

    125 is the frame at five seconds at 25 frames per second; here it is the cache's centre frame.
    """
    frames, audio = folder / "total_video_frames", folder / "total_video_3s_audio"
    frames.mkdir()
    audio.mkdir()
    for row, sample in source.samples():
        (frames / row["clip_id"]).mkdir()
        (frames / row["clip_id"] / "125.jpg").write_bytes(sample[samples.FRAME])
        _write_wav(audio / f"{row['clip_id']}.wav", sample[samples.AUDIO], source)
        on_sample()
    return {}


def write_ssl_tie_test(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """Write `frame/<id>.jpg` and `audio/<id>.wav`."""
    for name in ("frame", "audio"):
        (folder / name).mkdir()
    for row, sample in source.samples():
        (folder / "frame" / f"{row['clip_id']}.jpg").write_bytes(sample[samples.FRAME])
        _write_wav(folder / "audio" / f"{row['clip_id']}.wav", sample[samples.AUDIO], source)
        on_sample()
    return {}


def _write_wav(path: Path, flac: bytes, source: ExportSplit) -> None:
    wav = io.BytesIO()  # soundfile does not report a full disk
    sf.write(wav, samples.decode_flac(flac), source.settings.sample_rate_hz, format="WAV", subtype="PCM_16")
    path.write_bytes(wav.getvalue())


def _write_manifest(source: ExportSplit, folder: Path) -> None:
    """Write the three tables, cut to this split and the clips that it needs, with its facts in their metadata."""
    facts = Manifest.open(source.root.manifest).facts()
    facts["splits"] = {source.split: facts["splits"][source.split]}
    of_split = pc.field("split") == source.split
    of_clips = pc.field("clip_id").isin(source.listed)
    for name in TABLES:
        table = Manifest(source.root.manifest).table(name).filter(of_split if name == "splits" else of_clips)
        write_table(table, folder / f"{name}.parquet", facts)
