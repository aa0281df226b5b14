"""Memory that is used again: only when nobody refers to it, and by one thread at a time."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from avpipe.train.data.buffer_pool import BufferPool


def test_memory_comes_back_when_the_last_view_is_gone():
    memory = BufferPool()
    tensor = memory.empty((4, 6), np.float32)
    place, view = tensor.data_ptr(), tensor[1, 2:]
    del tensor
    assert memory.empty((24,), np.float32).data_ptr() != place
    del view
    assert place in [memory.empty((12,), np.float64).data_ptr(), memory.empty((24,), np.float32).data_ptr()]


@pytest.fixture
def hasty_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_no_two_threads_get_the_same_memory(hasty_threads):
    memory = BufferPool()

    def fill(thread: int) -> bool:
        """Whether all that was written stayed as it was while others wrote to theirs."""
        stayed = True
        for number in range(300):
            tensors = [memory.empty((64,), np.int64) for _ in range(3)]
            for place, tensor in enumerate(tensors):
                tensor.fill_(1000 * thread + 10 * number + place)
            stayed &= all(int(t.sum()) == 64 * (1000 * thread + 10 * number + p) for p, t in enumerate(tensors))
        return stayed

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(8)))
