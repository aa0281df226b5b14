"""Worker processes on this machine, each with a pipe to the thread that feeds it.

Workers share nothing that a dying one could take along: no queue, no lock. A worker that is killed while it starts or
waits is replaced and its part handed out again; the death of one at work is reported to the caller.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from queue import SimpleQueue
from typing import Any

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.work.base import WorkerLostError, run_part

# Never fork: decoders and NumPy hold threads and locks that a forked child would inherit in any state.
_SPAWN = multiprocessing.get_context("spawn")
# Time to begin a part: a worker may have to be started first and to import everything.
BEGIN_S = 60.0
# After this many workers in a row that died before they began a part, the run gives up.
STARTS = 5


class _Heartbeat(ctypes.Structure):
    """A worker's last heartbeat, in shared memory; item -1 before the first."""

    _fields_ = (("item", ctypes.c_long), ("until", ctypes.c_double))


def _serve_parent(board: ctypes.Array, pipe: connection.Connection) -> None:
    """Main loop of a worker: take a part, answer with (success, result or exception), until the pipe closes."""
    parent = multiprocessing.parent_process()
    # A worker that outlived a killed parent would write into the folder of the next run.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer(board, message))


def _answer(board: ctypes.Array, message: bytes) -> bytes:
    try:
        slot, function, part, seconds = pickle.loads(message)  # from the own parent
        beat = board[slot]

        def tell(item: int, seconds: float) -> None:
            # In this order, a parent that reads in between never sees a new item with an old deadline.
            beat.until, beat.item = time.monotonic() + seconds, item

        return pickle.dumps((True, run_part(function, part, seconds, tell)))
    except Exception as error:
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.dumps((False, error))
        except Exception:
            return pickle.dumps((False, RuntimeError(traceback.format_exc())))


class _Worker:
    """A process and the parent's end of its pipe."""

    def __init__(self, board: ctypes.Array):
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve_parent, args=(board, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, message: bytes) -> tuple[bool, Any] | None:
        """Return the worker's answer; None if it died without one."""
        try:
            self.pipe.send_bytes(message)
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):  # only the worker holds the other end, which closes when it dies
            self.end()
            return None

    def end(self) -> None:
        """Kill the process if it is alive, and release everything."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class LocalProcesses:
    """`workers` processes of this machine; an Executor, see `work.base`."""

    def __init__(self, workers: int):
        self.at_once = workers

    def __enter__(self) -> "LocalProcesses":
        self._board = _SPAWN.RawArray(_Heartbeat, 2 * self.at_once)
        self._tasks: SimpleQueue = SimpleQueue()
        self._lock, self._ended = threading.Lock(), False
        self._workers: dict[int, _Worker] = {}  # by the number of the thread that feeds it
        self._holders: dict[int, tuple[int, float]] = {}  # slot: that number, when the part was handed out
        self._threads = [threading.Thread(target=self._feed, args=[n], daemon=True) for n in range(self.at_once)]
        with _without_ctrl_c():
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._lock:
            self._ended = True
            for worker in self._workers.values():
                worker.process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, slot: int, function: Callable, part: list, seconds: float) -> Future:
        """Queue a part for the next free worker."""
        future: Future = Future()
        self._tasks.put((slot, future, pickle.dumps((slot, function, part, seconds))))
        return future

    def result(self, future: Future) -> Any:
        """Return what the part returned, or raise what it raised; WorkerLostError if its worker died."""
        return future.result()

    def heartbeats(self) -> dict[int, tuple[int, float]]:
        """Return (index of the current item, seconds left) by slot; index -1 for a part handed out but not begun."""
        now = time.monotonic()  # one clock for all processes of a machine
        with self._lock:
            handed_out = {slot: at for slot, (_, at) in self._holders.items()}
        heartbeats = {slot: (beat.item, beat.until - now) for slot, beat in enumerate(self._board)}
        begun = {slot: beat for slot, beat in heartbeats.items() if beat[0] >= 0}
        return {slot: (-1, at + BEGIN_S - now) for slot, at in handed_out.items()} | begun

    def kill(self, slot: int) -> None:
        """Kill the worker of a slot."""
        with self._lock:
            if slot in self._holders:
                self._workers[self._holders[slot][0]].process.kill()

    def _feed(self, number: int) -> None:
        """Hand parts to a worker, and its answers to the futures; runs in a thread."""
        while (task := self._tasks.get()) is not None and not self._ended:
            slot, future, message = task
            try:
                well, value = self._do(number, slot, message)
            except Exception as error:
                well, value = False, error
            if well:
                future.set_result(value)
            else:
                future.set_exception(value)
        with self._lock:
            worker = self._workers.pop(number, None)
        if worker:
            worker.end()

    def _do(self, number: int, slot: int, message: bytes) -> tuple[bool, Any]:
        """Return a worker's answer. Raises WorkerLostError if it died over the part, AvpipeError if none begins it."""
        for _ in range(STARTS):
            worker = self._hand_out(number, slot)
            try:
                if answer := worker.ask(message):
                    return answer
            finally:
                with self._lock:
                    del self._holders[slot]
            code = worker.process.exitcode
            if self._board[slot].item >= 0 or self._ended:
                raise WorkerLostError(f"the worker process died (exit code {code})")
        raise AvpipeError(
            f"{STARTS} worker processes in a row ended before they began (exit code {code}); "
            "if memory ran out, use fewer --workers"
        )

    def _hand_out(self, number: int, slot: int) -> _Worker:
        """Return the worker of thread `number`, replaced if it is dead, and record it as the holder of the part."""
        with self._lock:
            if self._ended:
                raise WorkerLostError("the run has ended")
            worker = self._workers.get(number)
            if worker is None or not worker.process.is_alive():
                if worker:
                    worker.end()
                worker = self._workers[number] = _Worker(self._board)
            self._board[slot].item = -1
            self._holders[slot] = number, time.monotonic()
            return worker


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Within the block, started threads and their processes ignore Ctrl-C, which the parent handles."""
    resource_tracker.ensure_running()  # started here, before a worker would start it with the signal enabled
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
