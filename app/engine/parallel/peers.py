"""Processes that exchange tensors, by torch.distributed: NCCL between GPUs, gloo between CPUs."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LOOPBACK = "127.0.0.1"  # ranks are processes of one machine; nobody listens to others
Lost = Callable[[RuntimeError], Exception]
_dist: Any = dist  # its stubs know only a part of what it exports


class Peers:
    """A group of its own and not torch's default one, since a process may have several engines, at once or in turn.

    Made when all of them make it. store: a file, empty at first, that all of them name.  name: of this group within it.
    lost: what to raise where the others cannot be reached.
    """

    def __init__(
        self, store: Path, name: str, rank: int, size: int, device: torch.device, timeout_s: float, lost: Lost
    ) -> None:
        self.rank, self.size, self._lost = rank, size, lost
        met = _dist.PrefixStore(name, _dist.FileStore(str(store), size))
        try:
            self._backend = _backend(met, rank, size, device, timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise lost(error) from error

    def sum(self, x: Tensor) -> Tensor:
        """In place. Each rank gets the same bits."""
        self._wait(lambda: self._backend.allreduce([x]))
        return x

    def send(self, x: Tensor, rank: int) -> None:
        self._wait(lambda: self._backend.send([x.contiguous()], rank, 0))

    def receive(self, room: Tensor, rank: int) -> Tensor:
        """Into `room`, which is returned."""
        self._wait(lambda: self._backend.recv([room], rank, 0))
        return room

    def abort(self) -> None:
        """So that nobody waits any more for a rank that is gone: gloo notices by itself, NCCL does not."""
        if self._backend.name() == "nccl":
            self._backend.abort()

    def _wait(self, begin: Callable[[], Any]) -> None:
        try:
            begin().wait()
        except RuntimeError as error:
            raise self._lost(error) from error


def _backend(store: Any, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cuda":
        # By default torch ends the whole process, and the server with it, when an exchange fails.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        options = _dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return _dist.ProcessGroupNCCL(store, rank, size, options)
    options = _dist.ProcessGroupGloo._Options()
    options._devices, options._timeout = [_dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)], timeout
    return _dist.ProcessGroupGloo(store, rank, size, options)
