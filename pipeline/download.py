"""Stage 1: `clips/<clip_id>.mp4` for every clip that can be had, and a ledger row for every clip that was tried."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.disk_space import check_estimate, check_reserve, clip_bytes, existing, free_bytes, gigabytes
from pipeline.errors import AvpipeError
from pipeline.layout import Root, file_sha256
from pipeline.ledger import PERMANENT, Ledger, Outcome
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.parts import stage_lock
from pipeline.sources.pacing import NO_PACE, Breaker, Clock, Pace, Pacer, StoppedError
from pipeline.sources.source import FolderSource, Source
from pipeline.sources.tar import TarSource
from pipeline.sources.youtube import SessionLimitError

# A kill loses at most the ledger rows of the last seconds; their clips are recognised by their files.
WRITE_EVERY_S = 10.0


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
    videos: int = 0
    """Fetches: several clips of one video are cut out of one."""
    pause_s: float = 0.0
    """Seconds that all pauses between the videos take together."""
    needed_bytes: int = 0
    """Estimate of what the clips will take on the disk."""
    free_bytes: int = 0
    runtime: str = ""
    """The JavaScript runtime, for YouTube."""

    def __len__(self) -> int:
        return len(self.clips)

    def __str__(self) -> str:
        """What the run will take, in a line; before it, what YouTube will be asked with."""
        text = f"{len(self.clips):,} clips, {self.videos:,} videos to fetch"
        if self.pause_s:
            days = self.pause_s / 86_400
            text += f", about {f'{days:,.1f} days' if days >= 1 else f'{days * 24:.1f} hours'} at this pace"
        text += f"; needs about {gigabytes(self.needed_bytes)}, {gigabytes(self.free_bytes)} free"
        return f"{self.runtime}\n{text}" if self.runtime else text


@dataclass(kw_only=True, slots=True)
class _State:
    """What earlier runs have left, read once: ledger and folder."""

    there: set[str] = field(default_factory=set)
    """Names of files in `clips`."""
    rows: dict[str, tuple[str | None, int, int]] = field(default_factory=dict)
    """Reason (None: done), attempts and bytes of each clip that was tried."""

    @classmethod
    def read(cls, root: Root, ledger: Ledger) -> "_State":
        there = set(os.listdir(root.clips)) if root.clips.exists() else set()
        return cls(there=there, rows=ledger.latest_values("reason", "attempts", "bytes"))

    def has(self, clip: Clip) -> bool:
        return f"{clip.clip_id}.mp4" in self.there

    def done(self, clip: Clip) -> bool:
        return clip.clip_id in self.rows and self.rows[clip.clip_id][0] is None

    def failed(self, clip: Clip, retry: bool) -> bool:
        """Whether the clip failed and is not to be tried again."""
        reason, *_ = self.rows.get(clip.clip_id, (None,))
        return reason is not None and (reason in PERMANENT or not retry)

    def attempts(self, clip_id: str) -> int:
        return self.rows[clip_id][1] if clip_id in self.rows else 0


def plan_download(root: Root, clips: list[Clip], source: Source, retry: bool = False) -> Plan:
    """Compare what is wanted with the ledger; failed clips are tried again with `retry`, but not those past winning.

    A local source is asked for all of them: what YouTube has removed, somebody may have kept.
    """
    return _plan(root, _State.read(root, Ledger(root.ledger, "download")), clips, source, retry)


def _plan(root: Root, state: _State, clips: list[Clip], source: Source, retry: bool) -> Plan:
    finished, failed, left = 0, 0, []
    for clip in clips:
        if state.done(clip) and state.has(clip):
            finished += 1
        elif not source.local and state.failed(clip, retry):
            failed += 1
        else:
            left.append(clip)
    offered = source.offered(left)
    whole_videos = not source.local and source.whole_videos
    videos = len({clip.youtube_id for clip in offered}) if whole_videos else len(offered)
    sizes = [size for reason, _, size in state.rows.values() if reason is None]
    return Plan(
        clips=offered,
        finished=finished,
        failed_before=failed,
        not_offered=len(left) - len(offered),
        videos=videos,
        pause_s=videos * _pace(source).mean_video_s,
        needed_bytes=_needed_bytes(root, source, len(offered), clip_bytes(sizes)),
        free_bytes=free_bytes(root.clips),
    )


def _pace(source: Source) -> Pace:
    return NO_PACE if source.local else source.pace


def _needed_bytes(root: Root, source: Source, count: int, each: int) -> int:
    """Links take nothing, an archive's clips what they take in it, all others `each`."""
    if isinstance(source, TarSource):
        return sum(path.stat().st_size for path in source.paths) * count // len(source.ids())
    linked = isinstance(source, FolderSource) and source.folder.stat().st_dev == existing(root.clips).stat().st_dev
    return 0 if linked else count * each


def download(
    root: Root,
    clips: list[Clip],
    source: Source,
    jobs: int = 1,
    retry: bool = False,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_note: Callable[[str], None] = lambda note: None,
    clock: Clock | None = None,
) -> Plan:
    """Fetch what is left of `clips` from `source` with `jobs` downloads at a time, at the pace that the source wants.

    `on_note` hears of pauses. Raises AvpipeError, keeping what was fetched, when the source has none of the clips, when
    it blocks video after video or pauses do not help, when the disk is or would be full, when YouTube's needs are not
    met, or when another process downloads into the same folder.
    """
    ledger = Ledger(root.ledger, "download")
    with stage_lock(root.clips, "the download"):
        # Half a video of a killed run is not gone on with: it is small, and what its name promises nobody can check.
        scratch = root.clips / ".incoming"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        state = _State.read(root, ledger)
        _adopt(root, clips, ledger, state)
        plan = _plan(root, state, clips, source, retry)
        if not (plan.clips or plan.finished or plan.failed_before):
            raise AvpipeError(f"none of the {len(clips):,} listed clips is in {source}; name another --from")
        pacer = Pacer(_pace(source), clock or Clock(), on_note)
        if plan.clips and not source.local:
            plan = replace(plan, runtime=source.prepare(lambda: pacer.stopped))
        on_plan(plan)
        if plan.clips:
            check_estimate(root.clips, plan.needed_bytes, plan.free_bytes)
        ledger.compact()
        try:
            _Run(root=root, source=source, pacer=pacer, scratch=scratch).fetch(
                plan.clips, jobs, state, ledger, on_outcome
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return plan


def _adopt(root: Root, clips: list[Clip], ledger: Ledger, state: _State) -> None:
    """Give clips that lie in the folder their ledger row: a kill came before it, or a person put them there."""
    strays = [clip for clip in clips if state.has(clip) and not state.done(clip)]
    outcomes = [_done(root, clip, seconds=0.0) for clip in strays]
    ledger.write(outcomes)
    state.rows.update({outcome.clip_id: (None, outcome.attempts, outcome.bytes) for outcome in outcomes})


def _done(root: Root, clip: Clip, seconds: float) -> Outcome:
    path = root.clip_file(clip.clip_id)
    return Outcome(clip_id=clip.clip_id, bytes=path.stat().st_size, sha256=file_sha256(path), seconds=seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What all threads of one run share."""

    root: Root
    source: Source
    pacer: Pacer
    scratch: Path

    def fetch(self, clips: list[Clip], jobs: int, state: _State, ledger: Ledger, on_outcome: Callable) -> None:
        """Fetch `clips` and write their outcomes to the ledger every few seconds, and at the end however it comes."""
        pending, written_at, breaker = [], time.monotonic(), Breaker()
        try:
            for outcomes in self._outcomes(clips, jobs):
                for outcome in outcomes:
                    outcome.attempts = state.attempts(outcome.clip_id) + 1
                pending += outcomes
                on_outcome(outcomes)
                if time.monotonic() - written_at > WRITE_EVERY_S:
                    ledger.write(pending)
                    pending, written_at = [], time.monotonic()
                breaker.note([outcome.reason for outcome in outcomes], outcomes[-1].detail)
        finally:
            ledger.write(pending)

    def _outcomes(self, clips: list[Clip], jobs: int) -> Iterator[list[Outcome]]:
        """Outcomes of each batch as it ends; no more batches are begun when the consumer stops.

        An AvpipeError of one thread is raised when the others have ended and their outcomes are told.
        """
        pool = ThreadPoolExecutor(max_workers=jobs)
        queue = iter(enumerate(self.source.batches(clips)))
        running: set[Future] = set()
        error: AvpipeError | None = None
        try:
            while True:
                try:
                    while error is None and len(running) < jobs:
                        check_reserve(self.root.clips)
                        number, batch = next(queue)
                        running.add(pool.submit(self._fetch_batch, batch, self.scratch / str(number)))
                except StopIteration:
                    jobs = 0
                except AvpipeError as caught:
                    error = caught
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    caught = future.exception()
                    if caught is None:
                        yield future.result()
                    elif isinstance(caught, AvpipeError):
                        error = error or caught
                        self.pacer.stop()
                    elif not isinstance(caught, StoppedError):
                        raise caught
            if error is not None:
                raise error
        finally:
            self.pacer.stop()
            pool.shutdown(cancel_futures=True)

    def _fetch_batch(self, batch: list[Clip], folder: Path) -> list[Outcome]:
        """Fetch one batch; where the session is limited, wait as long as it takes and go on with the same batch."""
        folder.mkdir()
        while True:
            turn = self.pacer.next_video()
            outcomes, begin = [], time.monotonic()
            for clip, result in self.source.fetch(batch, folder):
                if isinstance(result, SessionLimitError):
                    self.pacer.limited(turn, result.detail, result.retry_after_s)
                    break
                outcomes.append(self._outcome(clip, result, time.monotonic() - begin))
                begin = time.monotonic()
            else:
                break
        self.pacer.answered(turn)
        if any(outcome.reason == "disk" for outcome in outcomes):
            check_reserve(self.root.clips)  # a full disk is no failure of the clip
        shutil.rmtree(folder, ignore_errors=True)
        return outcomes

    def _outcome(self, clip: Clip, result: Path | MediaError, seconds: float) -> Outcome:
        if isinstance(result, MediaError):
            return Outcome(clip_id=clip.clip_id, reason=result.reason, detail=result.detail, seconds=seconds)
        result.replace(self.root.clip_file(clip.clip_id))
        return _done(self.root, clip, seconds)
