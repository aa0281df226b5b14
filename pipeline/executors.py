"""Where parts run: what an executor is, and Ray as one; processes of this machine are in `local_processes`.

A worker announces each item of its part as it begins it and says for how long it may then be silent. So a worker that
hangs is known after seconds, and of one that died it is known which item it had in hand.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from pipeline.errors import AvpipeError, mendable

# Bytes of memory that Ray shares between processes: parts and results are a few rows each.
RAY_STORE_BYTES = 256 * 2**20


class WorkerLostError(Exception):
    """A worker process is gone without a result; the text says how."""


class Executor(Protocol):
    """A context manager in which parts run. `place`, from 0 to 2 * at_once - 1, names a part until it is done."""

    at_once: int
    """Parts that run at a time."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *_) -> None: ...

    def submit(self, place: int, function: Callable, part: list, seconds: float) -> Future:
        """Begin `function(part)`, each item of which may take so many seconds."""

    def result(self, future: Future) -> Any:
        """What a finished part returned or raised. Raises WorkerLostError if its worker is gone."""

    def signs(self) -> dict[int, tuple[int, float]]:
        """By place: the number of the item that was begun last, and the seconds left to it (below 0: it hangs)."""

    def kill(self, place: int) -> None:
        """End the worker that has the part; its future is done when it is really dead."""


class _Announced(list):
    """A part that tells, while it is gone through, which of its items is in hand."""

    def __init__(self, part: list, seconds: float, tell: Callable[[int, float], None]):
        super().__init__(part)
        self.seconds, self.tell, self.item = seconds, tell, 0

    def __iter__(self):
        for self.item, value in enumerate(super().__iter__()):
            self.tell(self.item, self.seconds)
            yield value
        # Nobody knows whether they were worked on one by one or only collected.
        self.item = len(self)
        self.tell(self.item, self.seconds * len(self))

    def __reduce__(self):
        return list, (self[:],)  # a part that is returned goes back as what it was


_in_hand: _Announced | None = None


def allow(seconds: float) -> None:
    """Say in a worker that the item in hand will take so long from now; elsewhere it does nothing."""
    if _in_hand is not None:
        _in_hand.tell(_in_hand.item, seconds)


def work(function: Callable, part: list, seconds: float, tell: Callable[[int, float], None]) -> Any:
    """Run in a worker: `function(part)`; `tell` hears of each item as it is begun, and the seconds left to it."""
    global _in_hand
    _in_hand = _Announced(part, seconds, tell)
    try:
        return function(_in_hand)
    except OSError as error:
        sentence = mendable(error)
        if sentence is None:
            raise
        raise AvpipeError(sentence) from None
    finally:
        _in_hand = None


class _RayBoard:
    """An actor beside the driver: it keeps the last sign of each place, and workers that cannot reach it stop."""

    def __init__(self):
        self._signs: dict[int, tuple[int, float]] = {}

    def clear(self, place: int) -> None:
        self._signs.pop(place, None)

    def note(self, place: int, item: int, seconds: float) -> None:
        self._signs[place] = item, time.monotonic() + seconds

    def read(self) -> dict[int, tuple[int, float]]:
        now = time.monotonic()
        return {place: (item, until - now) for place, (item, until) in self._signs.items()}


def _work_on_ray(board: Any, folder: str, place: int, function: Callable, part: list, seconds: float) -> Any:
    import ray

    try:
        os.chdir(folder)  # relative paths mean there what they mean here
    except OSError as error:
        raise AvpipeError(f"{folder} is not to be had on {os.uname().nodename} ({error.strerror}); share it") from None
    # Waited for: a worker that dies in the next moment must not take the message with it.
    return work(function, part, seconds, lambda item, seconds: ray.get(board.note.remote(place, item, seconds)))


class RayCluster:
    """Processes on Ray: `workers` of a cluster that is started here and ends with the run, or all those at `address`.

    Machines of a cluster need avpipe, and the folders of this one under the same paths. Raises AvpipeError on entry
    where Ray is not installed or does not answer, and later when the whole cluster is lost.
    """

    def __init__(self, workers: int | None, address: str | None = None):
        self.workers, self.address = workers, address

    def __enter__(self) -> "RayCluster":
        with contextlib.ExitStack() as stack:
            # Ray prints the death of a worker to standard output, where a script expects one JSON object.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            self._ray = ray = _start_ray(self.workers, self.address)
            stack.callback(ray.shutdown)
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            cores = int(ray.cluster_resources().get("CPU", 1))
            self.at_once = max(1, min(self.workers or cores, cores))
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._board = ray.remote(_RayBoard).options(num_cpus=0, scheduling_strategy=here).remote()
            self._work = ray.remote(_work_on_ray).options(num_cpus=1, max_retries=0)
            self._refs: dict[int, Any] = {}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with self._stack:
            for ref in self._refs.values():
                self._ray.cancel(ref, force=True)

    def submit(self, place: int, function: Callable, part: list, seconds: float) -> Future:
        """See Executor."""
        self._get(self._board.clear.remote(place))
        self._refs[place] = self._work.remote(self._board, os.getcwd(), place, function, part, seconds)
        return self._refs[place].future()

    def result(self, future: Future) -> Any:
        """See Executor."""
        errors = self._ray.exceptions
        gone = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.OwnerDiedError)
        try:
            return future.result()
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):
                raise _cluster_lost(error.cause) from None
            raise error.cause from None
        except (*gone, errors.TaskCancelledError, errors.ObjectLostError) as error:
            raise WorkerLostError(f"the worker process on Ray died ({type(error).__name__})") from None
        except errors.RayError as error:
            raise _cluster_lost(error) from None

    def signs(self) -> dict[int, tuple[int, float]]:
        """See Executor."""
        return self._get(self._board.read.remote())

    def kill(self, place: int) -> None:
        """See Executor."""
        self._ray.cancel(self._refs[place], force=True)

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise _cluster_lost(error) from None


def _cluster_lost(error: Exception) -> AvpipeError:
    return AvpipeError(f"Ray fails ({_first_line(error)}); what is finished is kept, run the command again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _start_ray(workers: int | None, address: str | None) -> Any:
    """The module `ray`, connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise AvpipeError("--executor ray needs Ray, which is not installed; run: pip install 'avpipe[ray]'") from None
    own = {"address": "local", "num_cpus": workers, "include_dashboard": False, "object_store_memory": RAY_STORE_BYTES}
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level="CRITICAL")
    except Exception as error:  # a bad address, a port without Ray and another version each raise something else
        what = f"no Ray cluster could be joined at {address}" if address else "Ray could not be started"
        raise AvpipeError(f"{what} ({_first_line(error)}); mend it, or use --executor local") from None
    return ray


def open_executor(name: str, workers: int | None, ray_address: str | None) -> "int | RayCluster":
    """What `run_parts` wants, from the command line's options. Raises AvpipeError for options that do not go together.

    `workers` None means one a core: of this machine, or of the cluster at `ray_address`.
    """
    from pipeline.parts import default_workers

    if name == "ray":
        return RayCluster(workers if ray_address else workers or default_workers(), ray_address)
    if name != "local":
        raise AvpipeError(f"--executor is `local` or `ray`, not {name!r}")
    if ray_address:
        raise AvpipeError("--ray-address is of use with --executor ray only; add that, or leave the address out")
    return workers or default_workers()
