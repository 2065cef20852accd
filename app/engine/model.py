"""A model, or a rank's part of one, on its device: its kernels, its weights, its pages and what runs it over them."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from app.engine.architecture import DecoderSpec
from app.engine.config import EngineConfig
from app.engine.decoder import Decoder
from app.engine.device import Device
from app.engine.forward import Forward, PagedForward, ReferenceForward, nobody
from app.engine.kv_cache import KVCache
from app.engine.loader import DecoderWeights, dummy_weights, load_weights
from app.engine.parallel.layout import Part
from app.engine.parallel.wire import Pool
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import ReferenceKernels, Switches, TritonKernels, choose


def device_of(config: EngineConfig, rank: int) -> str:
    """As open_device() takes it: where there are several ranks, each GPU is one's."""
    return f"cuda:{rank}" if config.num_ranks > 1 and config.device == "cuda" else config.device


def resolve_threads(threads: int | None, num_ranks: int = 1) -> int:
    """Of one rank: those of them that were not told share the cores that this process may run on."""
    return threads or max(1, len(os.sched_getaffinity(0)) // num_ranks)


def choose_kernels(
    config: EngineConfig, device: Device, spec: DecoderSpec, dtype: torch.dtype
) -> ReferenceKernels | TritonKernels:
    """Decided once; see dispatch.py."""
    return choose(
        config.kernels, device.torch, device.name, group=spec.num_heads // spec.num_kv_heads, head_dim=spec.head_dim,
        dtype=dtype,
        switches=Switches(config.shared_prefix_kernel, config.fused_kernels, config.deterministic),
    )  # fmt: skip


def on_device(device: Device) -> AbstractContextManager[object]:
    """Tensors are made there. On the CPU they are anyway, and the context would cost time."""
    return nullcontext() if device.torch.type == "cpu" else device.torch


def read_weights(config: EngineConfig, folder: Path, part: Part, dtype: torch.dtype) -> DecoderWeights:
    """Raises ValueError as load_weights()."""
    if config.load_format == "dummy":
        return dummy_weights(part.whole, dtype, config.seed, part)
    weights = load_weights(folder, part.whole, dtype, part)
    if config.deterministic and weights.packed():
        raise ValueError(f"deterministic=True runs plain weights only; those of {folder} are quantized")
    return weights


def prepare(
    config: EngineConfig, device: Device, decoder: Decoder, tokens: TokenPool, pool: Pool, *,
    verified: int = 0, tell: Callable[[object], None] = nobody,
) -> tuple[KVCache, Forward]:  # fmt: skip
    """The model's pages and what runs it over them. verified: most draft tokens of a row.  tell: the other ranks."""
    size, kernels, dtype = config.block_size, decoder.kernels, decoder.weights.norm.dtype
    if not isinstance(kernels, TritonKernels):
        cache = KVCache.allocate(decoder.spec, pool.num_blocks, size, dtype)
        return cache, ReferenceForward(decoder, cache, tokens, size, tell)
    cache = KVCache.allocate(decoder.spec, pool.num_blocks + 1, size, dtype, device.torch)
    forward = PagedForward(
        device, decoder, cache, kernels, tokens, max_seqs=config.max_num_seqs, max_model_len=pool.max_model_len,
        block_size=size, tell=tell,
    )  # fmt: skip
    forward.compile()
    if config.cuda_graphs:
        forward.capture_all(verified)
    return cache, forward
