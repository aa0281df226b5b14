"""Plans a download: what is wanted, compared with the folder of clips and the ledger."""

import os
from dataclasses import dataclass, field

from avpipe.pipeline.core.disk import clip_bytes, existing, free_bytes, gigabytes
from avpipe.pipeline.core.ledger import PERMANENT, Ledger
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download.archive_source import ArchiveSource
from avpipe.pipeline.download.pacing import NO_PACE, Pace
from avpipe.pipeline.download.source import FolderSource, Source
from avpipe.pipeline.manifest.tables import Clip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a download has to do."""

    clips: list[Clip]
    finished: int
    """Clips already downloaded."""
    failed_before: int
    """Clips that failed earlier and are not retried."""
    not_offered: int
    """Clips that the source does not have, left for another source."""
    videos: int = 0
    """Number of fetches: clips of one video are cut from one."""
    pause_s: float = 0.0
    """Total seconds of pauses between videos."""
    needed_bytes: int = 0
    """Estimated size of the clips on the disk."""
    free_bytes: int = 0
    runtime: str = ""
    """The JavaScript runtime, for YouTube."""

    def __len__(self) -> int:
        return len(self.clips)

    def __str__(self) -> str:
        """Return the estimate of the run in a line, after one with the JavaScript runtime for YouTube."""
        text = f"{len(self.clips):,} clips, {self.videos:,} videos to fetch"
        if self.pause_s:
            days = self.pause_s / 86_400
            text += f", about {f'{days:,.1f} days' if days >= 1 else f'{days * 24:.1f} hours'} at this pace"
        text += f"; needs about {gigabytes(self.needed_bytes)}, {gigabytes(self.free_bytes)} free"
        return f"{self.runtime}\n{text}" if self.runtime else text


@dataclass(kw_only=True, slots=True)
class State:
    """State left by earlier runs: ledger and folder, read once."""

    there: set[str] = field(default_factory=set)
    """Names of files in `clips`."""
    rows: dict[str, tuple[str | None, int, int, str | None]] = field(default_factory=dict)
    """Reason (None: done), attempts, bytes and source of each clip that was tried."""

    @classmethod
    def read(cls, root: Root, ledger: Ledger) -> "State":
        """Read both, once."""
        there = set(os.listdir(root.clips)) if root.clips.exists() else set()
        return cls(there=there, rows=ledger.latest_values("reason", "attempts", "bytes", "source"))

    def finished(self, clip_id: str) -> bool:
        """Whether the clip's file and ledger row exist."""
        return self.has(clip_id) and self.done(clip_id)

    def has(self, clip_id: str) -> bool:
        """Whether the clip's file exists."""
        return f"{clip_id}.mp4" in self.there

    def done(self, clip_id: str) -> bool:
        """Whether the clip is done according to the ledger."""
        return clip_id in self.rows and self.rows[clip_id][0] is None

    def failed(self, clip_id: str, source: str, retry: bool, retry_permanent: bool) -> bool:
        """Whether the clip failed and should not be requested again from this source."""
        reason, _, _, asked = self.rows.get(clip_id, (None, 0, 0, None))
        if reason is None or retry_permanent or (asked is not None and asked != source):
            return False
        return reason in PERMANENT or not retry

    def attempts(self, clip_id: str) -> int:
        """Number of attempts for the clip."""
        return self.rows[clip_id][1] if clip_id in self.rows else 0

    def untried(self, source: str) -> bool:
        """Whether nothing has come from a source yet."""
        return not any(reason is None and asked == source for reason, _, _, asked in self.rows.values())

    def clip_bytes(self) -> int:
        """Estimated bytes of one more clip."""
        return clip_bytes([size for reason, _, size, _ in self.rows.values() if reason is None])


def plan_download(
    root: Root, clips: list[Clip], source: Source, retry: bool = False, retry_permanent: bool = False
) -> Plan:
    """Compare what is wanted with the ledger.

    Failed clips are retried with `retry` if the reason is transient, with `retry_permanent` in any case, and from a
    source that was not asked before: what YouTube removed, somebody may have kept. Local sources are always asked.
    """
    state = State.read(root, Ledger(root.ledger, "download"))
    return plan_fetches(root, state, clips, source, retry, retry_permanent)


def plan_fetches(
    root: Root, state: State, clips: list[Clip], source: Source, retry: bool, retry_permanent: bool
) -> Plan:
    """Implement `plan_download` from a given state; not for archives."""
    finished, failed, left = 0, 0, []
    for clip in clips:
        if state.finished(clip.clip_id):
            finished += 1
        elif not source.local and state.failed(clip.clip_id, str(source), retry, retry_permanent):
            failed += 1
        else:
            left.append(clip)
    offered = source.offered(left)
    whole_videos = not source.local and source.whole_videos
    videos = len({clip.youtube_id for clip in offered}) if whole_videos else len(offered)
    return Plan(
        clips=offered,
        finished=finished,
        failed_before=failed,
        not_offered=len(left) - len(offered),
        videos=videos,
        pause_s=videos * pace_of(source).mean_video_s,
        needed_bytes=0 if _is_linked(root, source) else len(offered) * state.clip_bytes(),
        free_bytes=free_bytes(root.clips),
    )


def plan_unpacking(root: Root, state: State, clips: list[Clip] | None, source: ArchiveSource) -> Plan:
    """Plan the unpacking of archives, whose contents are still unknown; `clips` None means all of them."""
    finished = sum(state.finished(clip.clip_id) for clip in clips or ())
    packed = source.packed_bytes
    most = packed if clips is None else min(packed, (len(clips) - finished) * state.clip_bytes())
    return Plan(
        clips=[],
        finished=finished,
        failed_before=0,
        not_offered=0,
        needed_bytes=most,
        free_bytes=free_bytes(root.clips),
    )


def pace_of(source: Source) -> Pace:
    """Return the pauses that a source requires."""
    return NO_PACE if source.local else source.pace


def _is_linked(root: Root, source: Source) -> bool:
    """Whether the source's files are linked, which takes no space."""
    return isinstance(source, FolderSource) and source.folder.stat().st_dev == existing(root.clips).stat().st_dev
