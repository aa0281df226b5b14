"""Stage 2: each downloaded clip becomes a sample (frame, audio, features, facts) in an immutable part of the cache."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline import media
from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.cache_part import Made, part_tasks, record_failure, write_part
from avpipe.pipeline.features.audio_window import cut_window, feature_members
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.work.base import Executor, announced
from avpipe.pipeline.work.run import run_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One clip to extract."""

    clip_id: str
    path: Path
    source_sha256: str
    attempts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an extraction has to do."""

    jobs: list[Job]
    finished: int
    """Clips already in the cache."""
    failed_before: int
    """Clips that failed earlier and are not retried."""
    not_downloaded: int
    """Clips not downloaded yet."""

    def __len__(self) -> int:
        return len(self.jobs)


def plan_extract(root: Root, clip_ids: Iterable[str], settings: ExtractSettings, retry: bool = False) -> Plan:
    """Compare what was downloaded with what is in the cache.

    A clip is done when the cache holds a sample of the same source file. A failed one is retried if its source
    file has changed since, or, with `retry`, if its reason is not permanent.
    """
    downloaded = Ledger(root.ledger, "download").latest()
    tried = Ledger(root.ledger, f"extract-{settings.name}").latest()
    cached = Cache(root.cache / settings.name).sources()
    jobs, finished, failed, missing = [], 0, 0, 0
    for clip_id in clip_ids:
        source = downloaded.get(clip_id)
        before = tried.get(clip_id)
        if source is None or not source.done:
            missing += 1
        elif cached.get(clip_id) == source.sha256:
            finished += 1
        elif before and _still_failed(before, source, retry):
            failed += 1
        else:
            attempts = before.attempts + 1 if before else 1
            path = root.clip_file(clip_id)
            jobs.append(Job(clip_id=clip_id, path=path, source_sha256=source.sha256, attempts=attempts))
    return Plan(jobs=jobs, finished=finished, failed_before=failed, not_downloaded=missing)


def _still_failed(before: Outcome, source: Outcome, retry: bool) -> bool:
    unchanged = before.finished_at > source.finished_at
    return not before.done and unchanged and (before.permanent or not retry)


def extract(
    root: Root,
    clip_ids: Iterable[str],
    settings: ExtractSettings,
    workers: int | Executor,
    retry: bool = False,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Extract the clips that are not done yet; a bad clip becomes a ledger row with its reason.

    `on_plan` is called once with the plan, `on_outcome` with the outcomes of each part. Raises AvpipeError when none of
    the clips is downloaded, or when another process extracts into the same cache.
    """
    folder = root.cache / settings.name
    ledger = Ledger(root.ledger, f"extract-{settings.name}")
    with stage_lock(folder, "the extraction", clean=True):
        Cache(folder).remove_orphans()
        ledger.compact()
        plan = plan_extract(root, clip_ids, settings, retry)
        if not (plan.jobs or plan.finished or plan.failed_before):
            raise AvpipeError(f"none of {plan.not_downloaded:,} clips is downloaded yet; run `avpipe download` first")
        on_plan(plan)
        for result in run_parts(extract_part, part_tasks(root, settings, plan.jobs), workers):
            on_outcome(record_failure(result, ledger))
    return plan


def extract_part(tasks: list[tuple[Root, ExtractSettings, int, Job]]) -> list[Outcome]:
    """Extract one part of the cache; runs in a worker."""
    root, settings, number, _ = tasks[0]
    return write_part(root, settings, number, (task[-1] for task in announced(tasks)), _make)


def _make(job: Job, settings: ExtractSettings) -> Made:
    return Made(members=make_sample(job.path, settings), source_sha256=job.source_sha256)


def make_sample(path: Path, settings: ExtractSettings) -> dict[str, bytes]:
    """Return the members of one clip's sample. Raises MediaError for an unusable clip.

    Times in meta.json are seconds from the start of the file; its source size is that of the frame as players show it.
    """
    clip = media.read_clip(path, settings.clip_s, settings.audio_s, settings.sample_rate_hz)
    centre_s = min(clip.duration_s, settings.clip_s) / 2
    source_width, source_height = clip.geometry.displayed_size(clip.frame)
    pcm_i16, audio_facts = cut_window(clip.audio_i16, clip.audio_start_s, centre_s, settings)
    members = {
        samples.FRAME: samples.encode_jpeg(
            clip.geometry.rgb(clip.frame, settings.frame_short_side), settings.jpeg_quality
        ),
        samples.AUDIO: samples.encode_flac(pcm_i16, settings.sample_rate_hz),
        samples.META: samples.encode_json(
            audio_facts
            | {
                "duration_s": round(clip.duration_s, 6),
                "frame_time_s": round(clip.frame_time_s, 6),
                "source_width": source_width,
                "source_height": source_height,
            }
        ),
    }
    return members | feature_members(clip.audio_i16, clip.audio_start_s, centre_s, settings)
