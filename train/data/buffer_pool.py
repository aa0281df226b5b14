"""A pool that reuses the memory of large tensors: getting fresh pages from the system is slower than filling them."""

import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


class _Loan(weakref.ref):
    """A weak reference to an array that is in use, with the memory block of the array."""

    __slots__ = ("block",)


class BufferPool:
    """A thread-safe pool of memory blocks for tensors.

    It keeps as much memory as was in use at any one time.
    """

    def __init__(self):
        self._free: defaultdict[int, list[_Loan]] = defaultdict(list)
        """Size in bytes to references to arrays that have been freed."""
        self._loans: dict[int, _Loan] = {}
        """All references by id: without this they would be freed themselves, and their callbacks never called."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        """Return an uninitialised tensor. Its memory is reused once the tensor and all its views are freed."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            returned = free.pop()
        except IndexError:  # no check beforehand, as another thread could come in between
            block = np.empty(size, np.uint8)
        else:
            block = self._loans.pop(id(returned)).block
        array = block.view(dtype).reshape(shape)
        # A tensor's storage, which its views share, keeps a reference to the array that it was made from. The callback
        # is compiled code on purpose: an exception raised by a signal handler in a Python callback would be lost.
        loan = _Loan(array, free.append)
        loan.block = block
        self._loans[id(loan)] = loan
        return torch.from_numpy(array)


# Shared by all batches on CPU: clearing 30 MB of fresh pages would add a twelfth to the time of loading.
BATCHES = BufferPool()
