"""What a download has to do: what is wanted, compared with the folder of clips and the ledger."""

import os
from dataclasses import dataclass, field

from pipeline.disk_space import clip_bytes, existing, free_bytes, gigabytes
from pipeline.layout import Root
from pipeline.ledger import PERMANENT, Ledger
from pipeline.manifest import Clip
from pipeline.sources.archives import ArchiveSource
from pipeline.sources.pacing import NO_PACE, Pace
from pipeline.sources.source import FolderSource, Source


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
class State:
    """What earlier runs have left, read once: ledger and folder."""

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
        """Whether the clip is there and has its row."""
        return self.has(clip_id) and self.done(clip_id)

    def has(self, clip_id: str) -> bool:
        """Whether there is a file of the clip."""
        return f"{clip_id}.mp4" in self.there

    def done(self, clip_id: str) -> bool:
        """Whether the ledger has the clip as done."""
        return clip_id in self.rows and self.rows[clip_id][0] is None

    def failed(self, clip_id: str, source: str, retry: bool, retry_permanent: bool) -> bool:
        """Whether the clip failed and is not to be asked for again. What one source lacks, another may have."""
        reason, _, _, asked = self.rows.get(clip_id, (None, 0, 0, None))
        if reason is None or retry_permanent or (asked is not None and asked != source):
            return False
        return reason in PERMANENT or not retry

    def attempts(self, clip_id: str) -> int:
        """How often the clip was tried."""
        return self.rows[clip_id][1] if clip_id in self.rows else 0

    def untried(self, source: str) -> bool:
        """Whether nothing has ever come from a source."""
        return not any(reason is None and asked == source for reason, _, _, asked in self.rows.values())

    def clip_bytes(self) -> int:
        """Bytes that one more clip will take."""
        return clip_bytes([size for reason, _, size, _ in self.rows.values() if reason is None])


def plan_download(
    root: Root, clips: list[Clip], source: Source, retry: bool = False, retry_permanent: bool = False
) -> Plan:
    """Compare what is wanted with the ledger.

    Failed clips are tried again with `retry` where they can still be won, with `retry_permanent` all of them, and by a
    source that was not asked for them before: what YouTube has removed, somebody may have kept. A local source is asked
    for all of them anyway.
    """
    state = State.read(root, Ledger(root.ledger, "download"))
    return plan_fetches(root, state, clips, source, retry, retry_permanent)


def plan_fetches(
    root: Root, state: State, clips: list[Clip], source: Source, retry: bool, retry_permanent: bool
) -> Plan:
    """`plan_download` by a state that was read before; not for archives."""
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
    """What is known before an archive is read; `clips` None: all that it holds are wanted."""
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
    """The pauses that a source wants."""
    return NO_PACE if source.local else source.pace


def _is_linked(root: Root, source: Source) -> bool:
    """Whether the source's files are linked, which takes no room."""
    return isinstance(source, FolderSource) and source.folder.stat().st_dev == existing(root.clips).stat().st_dev
