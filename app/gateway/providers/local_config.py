"""From settings to what the engine is told, and the devices that its models share."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from app.config import EngineSettings
from app.engine.arbiter import Devices

if TYPE_CHECKING:
    from app.engine import EngineConfig
    from app.engine.config import KernelChoice, KVCacheDtype

__all__ = ["Devices", "engine_config"]


def engine_config(s: EngineSettings) -> "EngineConfig":
    """Raises ValueError, naming the field, for what is impossible."""
    from app.engine import EngineConfig

    return EngineConfig(
        model=s.model_source,
        revision=s.revision or None,
        checksums=Path(s.checksums) if s.checksums else None,
        device=s.device,
        dtype=s.dtype,
        max_num_seqs=s.max_num_seqs,
        max_num_batched_tokens=s.max_num_batched_tokens,
        max_model_len=s.max_model_len or None,
        kv_cache_bytes=s.kv_cache_bytes or None,
        kv_cache_dtype=cast("KVCacheDtype", s.kv_cache_dtype),
        gpu_memory_utilization=s.gpu_memory_utilization,
        kernels=cast("KernelChoice", s.kernels),
        fused_kernels=s.fused_kernels,
        shared_prefix_kernel=s.shared_prefix_kernel,
        cuda_graphs=s.cuda_graphs,
        overlap=s.overlap,
        threads=s.threads or None,
        max_draft_tokens=s.max_draft_tokens,
        draft_model=s.draft_model or None,
        tensor_parallel_size=s.tensor_parallel_size,
        pipeline_parallel_size=s.pipeline_parallel_size,
        adapters={name: Path(folder) for name, folder in s.adapter_folders.items()},
    )
