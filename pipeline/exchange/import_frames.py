"""Imports existing frames and sounds, in the layouts of the papers' code, as parts of the cache."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import remove_leftovers
from avpipe.pipeline.core.ids import CLIP_ID
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.parquet import read_parquet
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.exchange.export_folders import INDEX
from avpipe.pipeline.exchange.import_manifest import adopt_manifest
from avpipe.pipeline.exchange.import_sample import FramePair, import_sample
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.cache_part import Made, part_tasks, record_failure, write_part
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.work.base import Executor, announced
from avpipe.pipeline.work.run import run_parts

# Folders of frames and of sounds. SSL-TIE's training layout has a folder of frames per clip; 125.jpg is the middle one.
SSL_TIE_TRAIN = ("total_video_frames", "total_video_3s_audio")
LAYOUTS = (("frames", "audio"), ("frame", "audio"), SSL_TIE_TRAIN)
MIDDLE_FRAME = "125.jpg"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameJob:
    """One clip to import."""

    clip_id: str
    pair: FramePair
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameImport:
    """What an import of frames has to do and what it skips."""

    jobs: list[FrameJob]
    finished: int
    """Clips already in the cache, made from these files or from the clip that the files were made from."""
    frames_alone: int
    """Frames without a sound."""
    sounds_alone: int
    """Sounds without a frame."""
    not_listed: list[str]
    """Ids of pairs that are not in the manifest; empty without a manifest."""
    skipped: list[str]
    """Files whose names are not clip ids."""
    manifest_adopted: bool
    """Whether the folder's manifest was adopted by the root."""

    def __len__(self) -> int:
        return len(self.jobs)


def find_layout(folder: Path) -> tuple[str, str] | None:
    """Return the names of the folders of frames and of sounds, or None if `folder` has no known layout."""
    there = (names for names in LAYOUTS if all((folder / name).is_dir() for name in names))
    return next(there, None)


def import_frames(
    root: Root,
    folder: Path,
    settings: ExtractSettings,
    workers: int | Executor,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[FrameImport], None] = lambda plan: None,
) -> FrameImport:
    """Put the frames and sounds of `folder` into the cache of `settings`; a bad pair becomes a row with its reason.

    A root without a manifest adopts the folder's tables, if there are any; only clips of the manifest are imported. A
    successful outcome with a detail is one whose meta.json was ignored. Raises AvpipeError for an unknown layout, a
    folder without any pair, or invalid tables or index.
    """
    cache = root.cache / settings.name
    ledger = Ledger(root.ledger, f"extract-{settings.name}")
    with stage_lock(cache, "the extraction"):
        remove_leftovers(cache)
        Cache(cache).remove_orphans()
        ledger.compact()
        plan = _plan(root, folder, Cache(cache).sources(), ledger.latest())
        on_plan(plan)
        for result in run_parts(import_part, part_tasks(root, settings, plan.jobs), workers):
            on_outcome(record_failure(result, ledger))
    return plan


def import_part(tasks: list[tuple[Root, ExtractSettings, int, FrameJob]]) -> list[Outcome]:
    """Make one part of the cache from frames and sounds; runs in a worker."""
    root, settings, number, _ = tasks[0]
    return write_part(root, settings, number, (task[-1] for task in announced(tasks)), _make)


def _make(job: FrameJob, settings: ExtractSettings) -> Made:
    image, audio = job.pair.read()
    members, note = import_sample(job.pair, image, audio, settings)
    return Made(members=members, source_sha256=job.pair.source_of(image, audio), note=note)


def _plan(root: Root, folder: Path, cached: dict[str, str], tried: dict[str, Outcome]) -> FrameImport:
    frames, sounds, skipped = _scan(folder)
    adopted = adopt_manifest(folder / "manifest", root.manifest)
    ids = [clip_id for clip_id in frames if clip_id in sounds]
    if not ids:
        raise AvpipeError(f"{folder} holds {len(frames):,} frames and {len(sounds):,} sounds, but no two of one clip")
    not_listed = []
    if (root.manifest / "splits.parquet").exists():
        listed = set(Manifest.open(root.manifest).ids(None))
        not_listed = [clip_id for clip_id in ids if clip_id not in listed]
        ids = [clip_id for clip_id in ids if clip_id in listed]
    index = _read_index(folder / INDEX)
    jobs = []
    for clip_id in ids:
        meta = folder / "meta" / f"{clip_id}.json"
        pair = FramePair(image=frames[clip_id], audio=sounds[clip_id], meta=meta, **index.get(clip_id, {}))
        if clip_id not in cached or not _is_made_of(cached[clip_id], pair):
            attempts = tried[clip_id].attempts + 1 if clip_id in tried else 1
            jobs.append(FrameJob(clip_id=clip_id, pair=pair, attempts=attempts))
    return FrameImport(
        jobs=jobs,
        finished=len(ids) - len(jobs),
        frames_alone=len(frames.keys() - sounds.keys()),
        sounds_alone=len(sounds.keys() - frames.keys()),
        not_listed=not_listed,
        skipped=skipped,
        manifest_adopted=adopted,
    )


def _is_made_of(source_sha256: str, pair: FramePair) -> bool:
    try:
        return pair.source_of(*pair.read()) == source_sha256
    except (OSError, MediaError):  # the worker will fail the same way and report it
        return False


def _scan(folder: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Return frames and sounds by clip id, sorted, and what is skipped."""
    layout = find_layout(folder)
    if layout is None:
        names = ", or ".join(f"{frames}/ and {audio}/" for frames, audio in LAYOUTS)
        raise AvpipeError(f"{folder} is of no known layout: wanted are {names}")
    frames, audio = (folder / name for name in layout)
    if layout == SSL_TIE_TRAIN:
        found = [(path.name, path / MIDDLE_FRAME) for path in frames.iterdir()]
    else:
        found = _stems(frames, IMAGE_SUFFIXES)
    skipped: list[str] = []
    return _by_id(found, skipped), _by_id(_stems(audio, AUDIO_SUFFIXES), skipped), skipped


def _stems(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    return [(path.stem, path) for path in folder.iterdir() if path.suffix.lower() in suffixes]


def _by_id(found: list[tuple[str, Path]], skipped: list[str]) -> dict[str, Path]:
    """Return regular files by clip id; of two files with one id the first by name."""
    paths: dict[str, Path] = {}
    for clip_id, path in sorted(found):
        if not CLIP_ID.fullmatch(clip_id):
            skipped.append(f"{clip_id!r}: no clip id")
        elif clip_id in paths:
            skipped.append(f"{path.name!r}: {clip_id} is there already")
        elif path.is_file():
            paths[clip_id] = path
    return paths


def _read_index(path: Path) -> dict[str, dict[str, str]]:
    """Return the hashes of an exported folder by clip id; {} if it has none."""
    if not path.exists():
        return {}
    fix = "remove it, and the files' own hashes are taken"
    columns = [pa.field(name, pa.string(), nullable=False) for name in ("clip_id", "source_sha256", "files_sha256")]
    rows = read_parquet(path, pa.schema(columns), "the index of an export", fix).to_pylist()
    index = {row.pop("clip_id"): row for row in rows}
    if not all(SHA256.fullmatch(text) for row in index.values() for text in row.values()):
        raise AvpipeError(f"{path} has hashes that are none; {fix}")
    return index
