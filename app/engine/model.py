"""A model, or a rank's part of one, on its device: its kernels, its weights, its pages and what runs it over them."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from app.engine.architecture import DecoderSpec
from app.engine.config import EngineConfig
from app.engine.decoder import Decoder
from app.engine.device import Device
from app.engine.forward import Forward, PagedForward, ReferenceForward, nobody
from app.engine.kv_cache import KVCache, page_dtype
from app.engine.loader import DecoderWeights, dummy_weights, load_weights
from app.engine.parallel.layout import Part
from app.engine.parallel.wire import Pool
from app.engine.quant.kv_scales import CALIBRATION_TOKENS, measured_scales
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import ReferenceKernels, Switches, TritonKernels, choose
from app.kernels.pages import Scales


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
        switches=Switches(
            config.shared_prefix_kernel, config.fused_kernels, config.deterministic, config.kv_cache_dtype == "fp8"
        ),
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
    cache = _pages(config, device, decoder, pool, _scales(config, device, decoder, tokens, pool))
    forward = _forward(config, device, decoder, tokens, pool, cache, tell)
    if isinstance(forward, PagedForward):
        forward.compile()
        if config.cuda_graphs:
            forward.capture_all(verified)
    return cache, forward


def _pages(
    config: EngineConfig, device: Device, decoder: Decoder, pool: Pool, scales: list[Scales] | None
) -> KVCache:  # fmt: skip
    """In 8 bits where there are scales. Our own kernels have a dummy's block besides."""
    dtype = decoder.weights.norm.dtype if scales is None else page_dtype(config.kv_cache_dtype, torch.float32)
    blocks = pool.num_blocks + isinstance(decoder.kernels, TritonKernels)
    return KVCache.allocate(decoder.spec, blocks, config.block_size, dtype, device.torch, scales)


def _scales(
    config: EngineConfig, device: Device, decoder: Decoder, tokens: TokenPool, pool: Pool
) -> list[Scales] | None:  # fmt: skip
    if config.kv_cache_dtype == "auto":
        return None
    if decoder.weights.kv_scales is not None:
        return decoder.weights.kv_scales
    few = replace(pool, num_blocks=min(pool.num_blocks, -(-CALIBRATION_TOKENS // config.block_size)))
    cache = _pages(config, device, decoder, few, None)
    forward = _forward(config, device, decoder, tokens, few, cache, nobody)
    length = min(pool.max_model_len, few.num_blocks * config.block_size)
    with torch.inference_mode(), on_device(device):
        return measured_scales(forward.run, cache, length, config.block_size, decoder.spec.vocab_size)


def _forward(
    config: EngineConfig, device: Device, decoder: Decoder, tokens: TokenPool, pool: Pool, cache: KVCache,
    tell: Callable[[object], None],
) -> Forward:  # fmt: skip
    kernels = decoder.kernels
    if not isinstance(kernels, TritonKernels):
        return ReferenceForward(decoder, cache, tokens, config.block_size, tell)
    return PagedForward(
        device, decoder, cache, kernels, tokens, max_seqs=config.max_num_seqs, max_model_len=pool.max_model_len,
        block_size=config.block_size, tell=tell,
    )  # fmt: skip
