"""glibc's allocator while weights are read: what a reader no longer needs goes back at once.

By itself it raises the size from which blocks have memory of their own (mallopt(3), M_MMAP_THRESHOLD) to that of the
largest one freed, up to 32 MiB. Blocks below come from one heap, and what is kept, such as weights, lies between what
was given back: of 565 MiB of int8 weights 900 to 1,100 MiB were taken at the peak, and 640 with this.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_WHILE_LOADING = 1 << 20
_AFTERWARDS = 32 << 20  # where glibc would have ended by itself: a step's tensors shall not be mapped anew each time


@contextmanager
def returning_memory() -> Iterator[None]:
    """For the whole process. Elsewhere than on glibc nothing happens."""
    _set(_WHILE_LOADING)
    try:
        yield
    finally:
        _set(_AFTERWARDS)


def _set(threshold: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, threshold)
        mallopt(_TRIM_THRESHOLD, 2 * threshold)
