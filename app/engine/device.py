"""The device an engine runs on. Every CUDA call of the engine is in this file; the rest speaks of tensors.

Memory: `gpu_memory_utilization` is the share of the whole GPU that this process may fill. What other processes hold is
theirs: it is not counted as ours, it only limits what is left to take.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

GIB = 1024**3
_RESERVE = 256 * 1024**2  # for what allocators and libraries take after the measurement
Replay = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the GPU. ours: held by this process.  peak: the most it held during the profile run, graphs included."""

    total: int
    free: int
    ours: int
    peak: int


def kv_budget(memory: Memory, utilization: float, least: int) -> int:
    """Bytes for KV pages. Raises ValueError with the numbers where less than `least` would be left."""
    allowed = int(memory.total * utilization)
    wanted = allowed - memory.peak
    growth = max(0, memory.peak - memory.ours)
    budget = min(wanted, memory.free - growth - _RESERVE)
    if budget >= least:
        return budget
    others = max(0, memory.total - memory.free - memory.ours)
    raise ValueError(
        f"the GPU cannot hold a KV cache: of {memory.total / GIB:.1f} GiB this process may use {allowed / GIB:.1f} "
        f"(gpu_memory_utilization={utilization}), model, activations and graphs take {memory.peak / GIB:.1f}, other "
        f"processes {others / GIB:.1f}; at least {least / GIB:.2f} are needed, {max(0, budget) / GIB:.2f} are left: "
        f"raise the utilization, free the GPU, or lower max_num_batched_tokens or max_model_len"
    )


class Download(Protocol):
    """A copy to the host that may still be under way."""

    def wait(self) -> Tensor: ...


class Device(Protocol):
    """torch: where tensors live.  name: of the GPU, as in the tuning table."""

    torch: torch.device
    name: str

    def upload(self, host: Tensor) -> Tensor:
        """A copy on the device. The caller may not change `host` before synchronize()."""

    def refill(self, target: Tensor, host: Tensor) -> None:
        """Overwrite the start of `target`, in the order of launches."""

    def download(self, tensor: Tensor) -> Download: ...

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        """step() as something that can be replayed on the same tensors, without its launches one by one."""

    def synchronize(self) -> None: ...

    def memory(self) -> Memory | None:
        """None where memory is not ours to size."""

    def release(self) -> None:
        """Give back what allocators keep for later; memory().peak counts from here."""


@dataclass(frozen=True, slots=True)
class _Done:
    tensor: Tensor

    def wait(self) -> Tensor:
        return self.tensor


class CpuDevice:
    """Everything at once; a capture only runs its step again. Its tests prove what CUDA graphs rely on."""

    def __init__(self) -> None:
        self.torch = torch.device("cpu")
        self.name = "cpu"

    def upload(self, host: Tensor) -> Tensor:
        return host

    def refill(self, target: Tensor, host: Tensor) -> None:
        target[: len(host)].copy_(host)

    def download(self, tensor: Tensor) -> Download:
        return _Done(tensor)

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        return step

    def synchronize(self) -> None:
        pass

    def memory(self) -> Memory | None:
        return None

    def release(self) -> None:
        pass


class _CudaDownload:
    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> Tensor:
        self._event.synchronize()
        return self._host


class CudaDevice:
    """One GPU. Never run on one so far: see docs/gpu.md."""

    def __init__(self, index: int = 0) -> None:
        if not torch.cuda.is_available():
            raise ValueError("device='cuda' found no CUDA device that torch can use; use device='cpu'")
        if index >= torch.cuda.device_count():
            raise ValueError(f"device='cuda:{index}' is not there; found are {torch.cuda.device_count()} CUDA devices")
        self.torch = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(index)
        torch.cuda.set_device(self.torch)
        self._pool: Any = None

    def upload(self, host: Tensor) -> Tensor:
        return host.pin_memory().to(self.torch, non_blocking=True)

    def refill(self, target: Tensor, host: Tensor) -> None:
        target[: len(host)].copy_(host.pin_memory(), non_blocking=True)

    def download(self, tensor: Tensor) -> Download:
        return _CudaDownload(tensor)

    def capture(self, step: Callable[[], Tensor]) -> Replay:
        """Thread-local: a capture of the whole process would break on any CUDA call of an embedding thread."""
        with self._side_stream():
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = step()
        self._pool = self._pool or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        """Libraries set themselves up in the first run, which must not be captured."""
        stream: Any = torch.cuda.Stream(self.torch)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.torch))
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream(self.torch).wait_stream(stream)
        torch.cuda.synchronize(self.torch)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def memory(self) -> Memory:
        """torch's allocator knows its own bytes alone; the CUDA context of about half a GiB falls to the others."""
        free, total = torch.cuda.mem_get_info(self.torch)
        stats = torch.cuda.memory_reserved(self.torch), torch.cuda.max_memory_reserved(self.torch)
        return Memory(total=total, free=free, ours=stats[0], peak=stats[1])

    def release(self) -> None:
        torch.cuda.synchronize(self.torch)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch)


def upload_all(value: Any, device: Device) -> Any:
    """The tensors in a dataclass, a tuple or alone, on the device; on the CPU the value itself."""
    if device.torch.type == "cpu":
        return value
    if isinstance(value, Tensor):
        return device.upload(value)
    if isinstance(value, tuple):
        return tuple(upload_all(part, device) for part in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: upload_all(getattr(value, field.name), device) for field in fields(value)})


def open_device(name: str) -> CpuDevice | CudaDevice:
    """ "auto" is the CPU until the GPU path has been verified on one (docs/gpu.md); "cuda" or "cuda:1" asks for it."""
    if name in ("auto", "cpu"):
        return CpuDevice()
    _, _, index = name.partition(":")
    return CudaDevice(int(index or 0))
