"""Stage 1: fetches `clips/<clip_id>.mp4` for every available clip, with a ledger row for every clip tried."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from avpipe.pipeline.core.disk import check_estimate, check_reserve
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.core.ids import CLIP_ID
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.untrusted_files import disk_error
from avpipe.pipeline.download.archive_source import ArchiveSource
from avpipe.pipeline.download.pacing import Breaker, Clock, Pacer, StoppedError
from avpipe.pipeline.download.plan import Plan, State, pace_of, plan_fetches, plan_unpacking
from avpipe.pipeline.download.source import Source
from avpipe.pipeline.download.youtube import SessionLimitError
from avpipe.pipeline.manifest.tables import Clip, clip_of
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.probe import check_clip

# A kill loses at most the ledger rows of these seconds; their clips are recognised by their files.
WRITE_EVERY_S = 10.0
NAMED = 5


def download(
    root: Root,
    clips: list[Clip] | None,
    source: Source | ArchiveSource,
    jobs: int = 1,
    retry: bool = False,
    retry_permanent: bool = False,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_note: Callable[[str], None] = lambda note: None,
    clock: Clock | None = None,
) -> Plan:
    """Fetch the missing `clips` from `source` with `jobs` parallel downloads, at the pace that the source requires.

    An archive is read once, by one thread; None for `clips` means all of its clips, and `source` lists its contents and
    damage afterwards. `on_note` is called about pauses. Raises AvpipeError, keeping what was fetched, if the source has
    none of the clips, if videos keep failing alike or pauses do not help, if the disk is or would be full, if YouTube's
    requirements are not met, or if another process downloads into the same folder.
    """
    ledger = Ledger(root.ledger, "download")
    with stage_lock(root.clips, "the download"), _scratch_folder(root) as scratch:
        state = State.read(root, ledger)
        _adopt(root, clips, ledger, state)
        pacer = Pacer(pace_of(source), clock or Clock(), on_note)
        run = _Run(root=root, source=source, pacer=pacer, scratch=scratch, state=state, ledger=ledger)
        if isinstance(source, ArchiveSource):
            plan = plan_unpacking(root, state, clips, source)
        else:
            plan = plan_fetches(root, state, clips, source, retry, retry_permanent)
            if not (plan.clips or plan.finished or plan.failed_before):
                raise AvpipeError(f"none of the {len(clips):,} listed clips is in {source}; name another --from")
            if plan.clips and not source.local:
                plan = replace(plan, runtime=source.prepare(lambda: pacer.stopped))
        on_plan(plan)
        if plan.needed_bytes:
            check_estimate(root.clips, plan.needed_bytes, plan.free_bytes)
        ledger.compact()
        if isinstance(source, ArchiveSource):
            return run.unpack(plan, clips, on_outcome)
        run.fetch(plan.clips, jobs, on_outcome)
    return plan


@contextmanager
def _scratch_folder(root: Root) -> Iterator[Path]:
    """Yield an empty folder next to the clips, removed at the end.

    A partial video of a killed run is not resumed: it is small, and cannot be verified.
    """
    scratch = root.clips / ".incoming"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _adopt(root: Root, clips: list[Clip] | None, ledger: Ledger, state: State) -> None:
    """Add the ledger rows of clips whose files were left by a killed run or put there by hand.

    A file that is not a clip gets none, until a source replaces it.
    """
    if clips is None:
        stems = (name.removesuffix(".mp4") for name in state.there if name.endswith(".mp4"))
        clips = [clip_of(stem) for stem in sorted(stems) if CLIP_ID.fullmatch(stem)]
    strays = [clip for clip in clips if state.has(clip.clip_id) and not state.done(clip.clip_id)]
    outcomes = [_done(root, clip, seconds=0.0) for clip in strays if _is_clip(root.clip_file(clip.clip_id), clip)]
    ledger.write(outcomes)
    state.rows.update({o.clip_id: (None, o.attempts, o.bytes, None) for o in outcomes})


def _is_clip(path: Path, clip: Clip) -> bool:
    try:
        check_clip(path, clip.length_s)
    except MediaError:
        return False
    return True


def _done(root: Root, clip: Clip, seconds: float) -> Outcome:
    path = root.clip_file(clip.clip_id)
    return Outcome(clip_id=clip.clip_id, bytes=path.stat().st_size, sha256=file_sha256(path), seconds=seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """State shared by all threads of a run."""

    root: Root
    source: Source | ArchiveSource
    pacer: Pacer
    scratch: Path
    state: State
    ledger: Ledger

    def fetch(self, clips: list[Clip], jobs: int, on_outcome: Callable) -> None:
        """Fetch `clips`; stop after too many failures in a row."""
        breaker = Breaker(untried=self.state.untried(str(self.source)))
        for outcomes in self._recorded(self._outcomes(clips, jobs), on_outcome):
            if not self.source.local:  # retrying a local source is free
                breaker.note([outcome.reason for outcome in outcomes], outcomes[-1].detail)

    def unpack(self, plan: Plan, clips: list[Clip] | None, on_outcome: Callable) -> Plan:
        """Read an archive to its end; return the updated plan."""
        listed = None if clips is None else {clip.clip_id: clip for clip in clips}

        def wanted(clip_id: str) -> Clip | None:
            clip = clip_of(clip_id) if listed is None else listed.get(clip_id)
            return None if self.state.finished(clip_id) else clip

        for _ in self._recorded(self._unpacked(wanted), on_outcome):
            pass
        seen = self.source.seen
        if not seen:
            raise AvpipeError("; ".join(self.source.damage) or f"{self.source} holds no clip named <clip_id>.mp4")
        if listed is not None and seen.keys().isdisjoint(listed):
            first = ", ".join(list(seen)[:NAMED])
            raise AvpipeError(f"none of the {len(seen):,} clips in {self.source} is in the manifest (first: {first})")
        tried = [clip for clip in map(wanted, seen) if clip is not None]
        finished = plan.finished if listed is not None else len(seen) - len(tried)
        missing = len(listed) - finished - len(tried) if listed is not None else 0
        return replace(plan, clips=tried, finished=finished, not_offered=missing)

    def _recorded(self, batches: Iterator[list[Outcome]], on_outcome: Callable) -> Iterator[list[Outcome]]:
        """Pass outcomes on, and write them to the ledger every few seconds and at the end."""
        pending, written_at = [], time.monotonic()
        try:
            for outcomes in batches:
                for outcome in outcomes:
                    outcome.attempts = self.state.attempts(outcome.clip_id) + 1
                    outcome.source = str(self.source)
                pending += outcomes
                on_outcome(outcomes)
                if time.monotonic() - written_at > WRITE_EVERY_S:
                    self.ledger.write(pending)
                    pending, written_at = [], time.monotonic()
                yield outcomes
        finally:
            self.ledger.write(pending)

    def _unpacked(self, wanted: Callable[[str], Clip | None]) -> Iterator[list[Outcome]]:
        begin = time.monotonic()
        for clip, result in self.source.fetch(wanted, self.scratch):
            yield [self._outcome(clip, result, time.monotonic() - begin)]
            begin = time.monotonic()

    def _outcomes(self, clips: list[Clip], jobs: int) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each batch as it ends; no batch is begun after the consumer stops.

        An AvpipeError of one thread is raised after the others have ended and their outcomes are yielded.
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
        """Fetch one batch; if the session is limited, wait and continue with the same batch."""
        try:
            folder.mkdir()
        except OSError as error:
            raise disk_error(folder, error) from None
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
            check_reserve(self.root.clips)  # a full disk is not a failure of the clip
        shutil.rmtree(folder, ignore_errors=True)
        return outcomes

    def _outcome(self, clip: Clip, result: Path | MediaError, seconds: float) -> Outcome:
        if isinstance(result, MediaError):
            return Outcome(clip_id=clip.clip_id, reason=result.reason, detail=result.detail, seconds=seconds)
        target = self.root.clip_file(clip.clip_id)
        try:
            result.replace(target)
            return _done(self.root, clip, seconds)
        except OSError as error:
            raise disk_error(target, error) from None
