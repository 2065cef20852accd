"""By what keys and values are divided before they are stored in 8 bits: one number per layer, KV head, and of the two.

Of the checkpoint where it has them. Else measured once, when an engine starts: a text of drawn tokens is read with
pages in the model's own dtype, and the largest magnitude of each head, times a margin for texts that have more, is
what e4m3's largest number stands for. A margin costs nothing before numbers are 30,000 times smaller than that, since
e4m3 is a floating-point format; what exceeds it all the same counts as the largest. Scales are powers of two, which
round nothing by themselves, and depend on the weights alone, so that the same model reads the same pages.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from app.engine.kv_cache import KVCache
from app.engine.parallel.layout import Part
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.shards import Shards
from app.kernels.fp8 import LARGEST
from app.kernels.pages import Scales

CALIBRATION_TOKENS = 256
_MARGIN = 4.0
# compressed-tensors' and vLLM's name, and that of older FP8 checkpoints
_NAMES = (("self_attn.k_scale", "self_attn.v_scale"), ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"))


def stored_scales(shards: Shards, part: Part) -> list[Scales] | None:
    """Those of the checkpoint for this rank's layers and heads; None where it has not all of them.

    Raises ValueError for scales that are no positive numbers, or neither one nor one for each KV head.
    """
    there = set(shards)
    for names in _NAMES:
        wanted = [tuple(f"model.layers.{i}.{name}" for name in names) for i in part.layers]
        if all(name in there for pair in wanted for name in pair):
            found = dict(shards.tensors([name for pair in wanted for name in pair]))
            return [(_of_heads(k, found[k], part), _of_heads(v, found[v], part)) for k, v in wanted]
    return None


def _of_heads(name: str, scale: Tensor, part: Part) -> Tensor:
    """float32 [K] of this part."""
    every = scale.float().flatten()
    heads = part.whole.num_kv_heads
    if len(every) not in (1, heads):
        raise ValueError(f"{name} has {len(every)} scales for {heads} KV heads")
    if not bool(((every > 0) & every.isfinite()).all()):
        raise ValueError(f"{name} is {every.tolist()}; scales must be positive")
    return every.expand(heads)[part.kv_heads.start : part.kv_heads.stop].clone()


def measured_scales(
    run: Callable[[Schedule], object], cache: KVCache, longest: int, block_size: int, vocab_size: int
) -> list[Scales]:
    """run: reads a schedule over `cache`, which has pages in the model's dtype. Every rank does so at the same time."""
    count = min(CALIBRATION_TOKENS, longest)
    tokens = torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(0), device="cpu")
    seq = Sequence(Request("calibration", (TokenSegment(tokens.tolist()),)), 0, 1)
    seq.block_ids = list(range(-(-count // block_size)))
    run(Schedule([ScheduledRow(seq, 0, count)], shared_blocks=[0]))
    return [(_scale(keys), _scale(values)) for keys, values in zip(cache.keys, cache.values, strict=True)]


def _scale(pages: Tensor) -> Tensor:
    """float32 [K] of pages [N, K, S, D]; 1 for a head that is zero throughout."""
    largest = pages.float().abs().amax((0, 2, 3))
    exponent = (largest * _MARGIN / LARGEST).log2().ceil()
    return torch.where(largest > 0, exponent, 0.0).exp2()
