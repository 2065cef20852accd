"""How many KV blocks fit: measured on the device with the model in place, before the pool takes the rest."""

import gc
from dataclasses import replace

import torch

from app.engine.config import EngineConfig
from app.engine.decoder import Decoder
from app.engine.device import Device, kv_budget
from app.engine.forward import PagedForward
from app.engine.kv_cache import KVCache, page_dtype
from app.engine.sampler import SamplingBatch, sample
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import TritonKernels


def pool_budget(
    config: EngineConfig, device: Device, decoder: Decoder, kernels: TritonKernels, max_model_len: int
) -> int | None:
    """Bytes for the pool on this device, of which the peak of a full step and of all graphs is kept free.

    None where the settings say how large the pool is, or the device's memory is not ours to size. Raises ValueError
    with the numbers where not even one full step's blocks fit.
    """
    if config.num_blocks is not None or config.kv_cache_bytes is not None or device.memory() is None:
        return None
    peak = _profile(config, device, decoder, kernels, max_model_len)
    gc.collect()  # graphs refer to what they captured, in circles
    device.release()
    memory = device.memory()
    assert memory is not None
    per_token = decoder.spec.kv_bytes_per_token(page_dtype(config.kv_cache_dtype, decoder.weights.norm.dtype))
    needed = -(-config.max_num_batched_tokens // config.block_size) * config.block_size * per_token
    return kv_budget(replace(memory, peak=peak), config.gpu_memory_utilization, needed)


def _profile(config: EngineConfig, device: Device, decoder: Decoder, kernels: TritonKernels, max_model_len: int) -> int:
    """The most bytes held while everything large ran once, with a single page."""
    device.release()
    size, dtype = config.block_size, page_dtype(config.kv_cache_dtype, decoder.weights.norm.dtype)
    cache = KVCache.allocate(decoder.spec, 1, size, dtype, device.torch)
    forward = PagedForward(
        device, decoder, cache, kernels, TokenPool(config.max_num_seqs, device), max_seqs=config.max_num_seqs,
        max_model_len=max_model_len, block_size=size,
    )  # fmt: skip
    forward.warm(min(config.max_num_batched_tokens, max_model_len))
    _sample_worst(device, config.max_num_seqs, decoder.spec.vocab_size)
    if config.cuda_graphs:
        forward.capture_all(config.max_draft_tokens)
    memory = device.memory()
    assert memory is not None
    return memory.peak


def _sample_worst(device: Device, rows: int, vocab_size: int) -> None:
    """Every row with a flat distribution and top-p, which ranks the whole vocabulary."""
    with device.torch:
        every = torch.arange(rows)
        batch = SamplingBatch(
            temperature=torch.ones(rows),
            top_k=torch.zeros(rows, dtype=torch.int64),
            top_p=torch.full((rows,), 0.99),
            min_p=torch.zeros(rows),
            uniform=torch.zeros(rows, dtype=torch.float64),
            sampled=every[:0],
            filtered=every,
            with_logprobs=every,
            num_top=1,
        )
        sample(torch.zeros(rows, vocab_size), batch)
