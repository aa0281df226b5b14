"""Runs parts on Ray, whose workers may be on many machines."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from avpipe.pipeline.core.errors import AvpipeError, first_line
from avpipe.pipeline.work.base import WorkerLostError, run_part

# Memory that Ray shares between processes; parts and results are only a few rows each.
RAY_STORE_BYTES = 256 * 2**20


class _RayHeartbeats:
    """An actor on the driver's machine that keeps the last heartbeat of each slot; workers that lose it stop."""

    def __init__(self):
        self._beats: dict[int, tuple[int, float]] = {}

    def clear(self, slot: int) -> None:
        self._beats.pop(slot, None)

    def note(self, slot: int, item: int, seconds: float) -> None:
        self._beats[slot] = item, time.monotonic() + seconds

    def read(self) -> dict[int, tuple[int, float]]:
        now = time.monotonic()
        return {slot: (item, until - now) for slot, (item, until) in self._beats.items()}


def _work_on_ray(board: Any, folder: str, slot: int, function: Callable, part: list, seconds: float) -> Any:
    import ray

    try:
        os.chdir(folder)  # so that relative paths mean the same there
    except OSError as error:
        raise AvpipeError(f"{folder} is not available on {os.uname().nodename} ({error.strerror}); share it") from None
    # Wait for it: a worker that dies in the next moment must not take the message with it.
    return run_part(function, part, seconds, lambda item, seconds: ray.get(board.note.remote(slot, item, seconds)))


class RayCluster:
    """Processes on Ray: `workers` of a cluster that is started for this run, or those of the cluster at `address`.

    All machines need avpipe, and the same folders under the same paths. Raises AvpipeError on entry if Ray is not
    installed or does not answer, and later if the cluster is lost.
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
            self._board = ray.remote(_RayHeartbeats).options(num_cpus=0, scheduling_strategy=here).remote()
            self._work = ray.remote(_work_on_ray).options(num_cpus=1, max_retries=0)
            self._refs: dict[int, Any] = {}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with self._stack:
            for ref in self._refs.values():
                self._ray.cancel(ref, force=True)

    def submit(self, slot: int, function: Callable, part: list, seconds: float) -> Future:
        """Queue a part for the next free worker."""
        self._get(self._board.clear.remote(slot))
        self._refs[slot] = self._work.remote(self._board, os.getcwd(), slot, function, part, seconds)
        return self._refs[slot].future()

    def result(self, future: Future) -> Any:
        """Return what the part returned, or raise what it raised; WorkerLostError if its worker died."""
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

    def heartbeats(self) -> dict[int, tuple[int, float]]:
        """Return (index of the current item, seconds left) by slot."""
        return self._get(self._board.read.remote())

    def kill(self, slot: int) -> None:
        """Kill the worker of a slot."""
        self._ray.cancel(self._refs[slot], force=True)

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise _cluster_lost(error) from None


def _cluster_lost(error: Exception) -> AvpipeError:
    return AvpipeError(f"Ray failed ({first_line(error)}); finished work is kept, rerun the command to resume")


def _start_ray(workers: int | None, address: str | None) -> Any:
    """Return the module `ray`, connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise AvpipeError("--executor ray needs Ray, which is not installed; run: pip install 'avpipe[ray]'") from None
    own = {"address": "local", "num_cpus": workers, "include_dashboard": False, "object_store_memory": RAY_STORE_BYTES}
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level="CRITICAL")
    except Exception as error:  # a bad address, a port without Ray and another version raise different errors
        what = f"no Ray cluster could be joined at {address}" if address else "Ray could not be started"
        raise AvpipeError(f"{what} ({first_line(error)}); fix that, or use --executor local") from None
    return ray
