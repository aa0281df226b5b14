"""Worker processes of this machine, each with a pipe of its own to the thread that feeds it.

Nothing is shared between workers that one of them could take along as it dies: no queue, no lock. A worker that is
killed while it starts or waits is replaced and its part handed out again; of one that dies later, the caller hears.
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

from pipeline.errors import AvpipeError
from pipeline.executors import WorkerLostError, work

# Never fork: decoders and NumPy hold threads and locks that a forked child would inherit half-way.
_SPAWN = multiprocessing.get_context("spawn")
# From the handing out of a part to its first item: a worker may have to be started and to import all it needs.
BEGIN_S = 60.0
# So many workers in a row that end before they begin their part are no accident.
STARTS = 5


class _Sign(ctypes.Structure):
    """A worker's last sign of life, in memory that all processes share; item -1 before the first."""

    _fields_ = (("item", ctypes.c_long), ("until", ctypes.c_double))


def _serve_parent(board: ctypes.Array, pipe: connection.Connection) -> None:
    """A worker's life: take a part, answer with (whether it went well, result or exception), until the pipe closes."""
    parent = multiprocessing.parent_process()
    # A worker that outlives a killed parent would write into the folder of the run that follows.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer(board, message))


def _answer(board: ctypes.Array, message: bytes) -> bytes:
    try:
        place, function, part, seconds = pickle.loads(message)  # from the own parent
        sign = board[place]

        def tell(item: int, seconds: float) -> None:
            # The order matters to a parent that looks in between: an item never meets the time of the one before it.
            sign.until, sign.item = time.monotonic() + seconds, item

        return pickle.dumps((True, work(function, part, seconds, tell)))
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
        """The worker's answer; None when it is gone without one."""
        try:
            self.pipe.send_bytes(message)
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):  # only the worker holds the other end: it closes with the worker's death
            self.end()
            return None

    def end(self) -> None:
        """Kill it, unless it is dead, and leave nothing of it behind."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class LocalProcesses:
    """`workers` processes of this machine; an Executor, see `pipeline.executors`."""

    def __init__(self, workers: int):
        self.at_once = workers

    def __enter__(self) -> "LocalProcesses":
        self._board = _SPAWN.RawArray(_Sign, 2 * self.at_once)
        self._tasks: SimpleQueue = SimpleQueue()
        self._lock, self._ended = threading.Lock(), False
        self._workers: dict[int, _Worker] = {}  # by the number of the thread that feeds it
        self._holders: dict[int, tuple[int, float]] = {}  # place: that number, when the part was handed out
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

    def submit(self, place: int, function: Callable, part: list, seconds: float) -> Future:
        """See Executor."""
        future: Future = Future()
        self._tasks.put((place, future, pickle.dumps((place, function, part, seconds))))
        return future

    def result(self, future: Future) -> Any:
        """See Executor."""
        return future.result()

    def signs(self) -> dict[int, tuple[int, float]]:
        """See Executor; item -1 with the seconds left to begin for a part that was handed out and is not begun."""
        now = time.monotonic()  # one clock for all processes of a machine
        with self._lock:
            handed_out = {place: at for place, (_, at) in self._holders.items()}
        signs = {place: (sign.item, sign.until - now) for place, sign in enumerate(self._board)}
        begun = {place: sign for place, sign in signs.items() if sign[0] >= 0}
        return {place: (-1, at + BEGIN_S - now) for place, at in handed_out.items()} | begun

    def kill(self, place: int) -> None:
        """See Executor."""
        with self._lock:
            if place in self._holders:
                self._workers[self._holders[place][0]].process.kill()

    def _feed(self, number: int) -> None:
        """Run in a thread: hand parts to one worker after the other, and their answers to the futures."""
        while (task := self._tasks.get()) is not None and not self._ended:
            place, future, message = task
            try:
                well, value = self._do(number, place, message)
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

    def _do(self, number: int, place: int, message: bytes) -> tuple[bool, Any]:
        """A worker's answer. Raises WorkerLostError for one that died over the part, AvpipeError if none begins it."""
        for _ in range(STARTS):
            worker = self._hand_out(number, place)
            try:
                if answer := worker.ask(message):
                    return answer
            finally:
                with self._lock:
                    del self._holders[place]
            code = worker.process.exitcode
            if self._board[place].item >= 0 or self._ended:
                raise WorkerLostError(f"the worker process died (exit code {code})")
        raise AvpipeError(
            f"{STARTS} worker processes in a row ended before they began (exit code {code}); "
            "if it is the memory that is used up, use fewer --workers"
        )

    def _hand_out(self, number: int, place: int) -> _Worker:
        """The worker of thread `number`, a new one where the last is dead, noted as the holder of the part."""
        with self._lock:
            if self._ended:
                raise WorkerLostError("the run has ended")
            worker = self._workers.get(number)
            if worker is None or not worker.process.is_alive():
                if worker:
                    worker.end()
                worker = self._workers[number] = _Worker(self._board)
            self._board[place].item = -1
            self._holders[place] = number, time.monotonic()
            return worker


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Threads that start here, and the processes that they start, never see a Ctrl-C: it is the parent's to act on."""
    resource_tracker.ensure_running()  # its start, otherwise left to the first worker, would let the signal through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
