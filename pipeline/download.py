"""Stage 1: `clips/<clip_id>.mp4` for every clip that can be had, and a ledger row for every clip that was tried."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AvpipeError
from pipeline.layout import Root, file_sha256
from pipeline.ledger import Ledger, Outcome
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.parts import stage_lock
from pipeline.sources import Source

# A kill loses at most the ledger rows of the last seconds; their clips are recognised by their files.
WRITE_EVERY_S = 10.0
# So many blocks in a row mean that every further request makes it worse.
BLOCKS_IN_A_ROW = 5
BLOCKS = frozenset({"bot_check", "rate_limited", "setup", "disk"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a download has to do."""

    clips: list[Clip]
    finished: int
    """Clips that are there already."""
    failed_before: int
    """Clips that failed earlier and are not tried again."""
    not_offered: int
    """Clips that the source does not have; they are left open for another source."""

    def __len__(self) -> int:
        return len(self.clips)


def plan_download(root: Root, clips: list[Clip], source: Source, retry: bool = False) -> Plan:
    """Compare what is wanted with the ledger; failed clips are tried again with `retry`, but not those past winning.

    A local source is asked for all of them: what YouTube has removed, somebody may have kept.
    """
    before = Ledger(root.ledger, "download").latest()
    finished = [c for c in clips if (o := before.get(c.clip_id)) and o.done and root.clip_file(c.clip_id).exists()]
    failed = [c for c in clips if (o := before.get(c.clip_id)) and not o.done and (o.permanent or not retry)]
    if source.local:
        failed = []
    settled = {clip.clip_id for clip in finished + failed}
    left = [clip for clip in clips if clip.clip_id not in settled]
    offered = source.offered(left)
    return Plan(clips=offered, finished=len(finished), failed_before=len(failed), not_offered=len(left) - len(offered))


def download(
    root: Root,
    clips: list[Clip],
    source: Source,
    jobs: int = 1,
    retry: bool = False,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Plan:
    """Fetch what is left of `clips` from `source` with `jobs` downloads at a time.

    Raises AvpipeError when the source has none of them, when it blocks clip after clip (what was fetched is kept), or
    when another process downloads into the same folder.
    """
    ledger = Ledger(root.ledger, "download")
    with stage_lock(root.clips, "the download"):
        scratch = root.clips / ".incoming"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        ledger.compact()
        _adopt(root, clips, ledger)
        plan = plan_download(root, clips, source, retry)
        if not (plan.clips or plan.finished or plan.failed_before):
            raise AvpipeError(f"none of the {len(clips):,} listed clips is in {source}; name another --from")
        on_plan(plan)
        before = ledger.latest()
        try:
            _fetch_all(root, plan.clips, source, jobs, scratch, before, ledger, on_outcome)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return plan


def _adopt(root: Root, clips: list[Clip], ledger: Ledger) -> None:
    """Give clips that lie in the folder their ledger row: a kill came before it, or a person put them there."""
    before = ledger.latest()
    there = {path.name for path in root.clips.iterdir()}
    strays = [c for c in clips if f"{c.clip_id}.mp4" in there and not ((o := before.get(c.clip_id)) and o.done)]
    ledger.write(_done(root, clip, seconds=0.0) for clip in strays)


def _done(root: Root, clip: Clip, seconds: float) -> Outcome:
    path = root.clip_file(clip.clip_id)
    return Outcome(clip_id=clip.clip_id, bytes=path.stat().st_size, sha256=file_sha256(path), seconds=seconds)


def _fetch_all(root, clips, source, jobs, scratch, before, ledger, on_outcome) -> None:
    pending, written_at, blocks = [], time.monotonic(), 0
    try:
        for outcomes in _outcomes(root, source, source.batches(clips), jobs, scratch):
            for outcome in outcomes:
                if earlier := before.get(outcome.clip_id):
                    outcome.attempts = earlier.attempts + 1
            pending += outcomes
            on_outcome(outcomes)
            if time.monotonic() - written_at > WRITE_EVERY_S:
                ledger.write(pending)
                pending, written_at = [], time.monotonic()
            blocks = blocks + 1 if all(o.reason in BLOCKS for o in outcomes) else 0
            if blocks >= BLOCKS_IN_A_ROW:
                raise AvpipeError(
                    f"stopped after {blocks} blocks in a row ({outcomes[-1].reason}: {outcomes[-1].detail}); "
                    "wait or mend this, then run with --retry"
                )
    finally:
        ledger.write(pending)


def _outcomes(root, source, batches, jobs, scratch) -> Iterator[list[Outcome]]:
    """Outcomes of each batch as it ends; no more batches are begun when the consumer stops."""
    pool = ThreadPoolExecutor(max_workers=jobs)
    queue = iter(enumerate(batches))
    try:
        running = set()
        while True:
            for number, batch in queue:
                running.add(pool.submit(_fetch_batch, root, source, batch, scratch / str(number)))
                if len(running) >= jobs:
                    break
            if not running:
                return
            future = next(as_completed(running))
            running.remove(future)
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch_batch(root: Root, source: Source, batch: list[Clip], folder: Path) -> list[Outcome]:
    folder.mkdir()
    outcomes, begin = [], time.monotonic()
    for clip, result in source.fetch(batch, folder):
        seconds = time.monotonic() - begin
        if isinstance(result, MediaError):
            outcome = Outcome(clip_id=clip.clip_id, reason=result.reason, detail=result.detail, seconds=seconds)
        else:
            result.replace(root.clip_file(clip.clip_id))
            outcome = _done(root, clip, seconds)
        begin = time.monotonic()
        outcomes.append(outcome)
    shutil.rmtree(folder, ignore_errors=True)
    return outcomes
