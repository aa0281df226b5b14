"""Memory of large arrays that is used again once nobody refers to it: fresh pages cost more than what is put there."""

import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


class _Loan(weakref.ref):
    """A weak reference to an array that was given away, with the memory that the array lies in."""

    __slots__ = ("block",)


class BufferPool:
    """Gives room for tensors, of late arrays where it can; threads may share it.

    As much is kept as was in use at one time.
    """

    def __init__(self):
        self._free: defaultdict[int, list[_Loan]] = defaultdict(list)
        """By size in bytes: references to arrays that are gone."""
        self._loans: dict[int, _Loan] = {}
        """All references, by their ids: one that is itself gone would not be called back."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        """An uninitialised tensor. Its memory comes back when the tensor and all views of it are gone."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free[size]
        try:
            returned = free.pop()
        except IndexError:  # not asked beforehand: another thread could be quicker
            block = np.empty(size, np.uint8)
        else:
            block = self._loans.pop(id(returned)).block
        array = block.view(dtype).reshape(shape)
        # A tensor's storage, which its views share, holds on to the very array that it was made from. The callback is
        # compiled code on purpose: an exception that a signal raises in Python code called from here would be lost.
        loan = _Loan(array, free.append)
        loan.block = block
        self._loans[id(loan)] = loan
        return torch.from_numpy(array)


# Of all batches without a GPU: to have 30 MB of fresh pages cleared takes a twelfth of the time that loading does.
BATCHES = BufferPool()
