"""RMSNorm, with the residual addition before it in the same pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.launch import check_dtype, check_last_contiguous, power_of_two
from app.kernels.reference import rms_norm as rms_norm_reference
from app.kernels.variants import KernelShape, Variant

_LARGEST_ROW = 1 << 16  # values held in registers by one program


@triton.jit
def rms_norm_kernel(
    stream, change, weight, out, eps, stream_stride, change_stride, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_CHANGE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    used = place < WIDTH
    value = tl.load(stream + row * stream_stride + place, mask=used, other=0.0).to(tl.float32)
    if HAS_CHANGE:
        value += tl.load(change + row * change_stride + place, mask=used, other=0.0).to(tl.float32)
        tl.store(stream + row * stream_stride + place, value.to(stream.dtype.element_ty), mask=used)
    scale = tl.rsqrt(tl.sum(value * value) / WIDTH + eps)
    normed = value * scale * tl.load(weight + place, mask=used, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + place, normed.to(out.dtype.element_ty), mask=used)


def add_rms_norm(stream: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """stream += change in place where there is a change, then the RMSNorm (1910.07467) of the stream.

    stream: [n, width], the residual stream, rows of any stride.  change: the same shape and dtype.  weight: [width].
    Returns a new [n, width]. Statistics and sum in float32: the norm sees the sum before it is rounded.
    """
    rows, width = stream.shape
    if width > _LARGEST_ROW:
        raise ValueError(f"rms_norm takes rows of at most {_LARGEST_ROW} values, not {width}")
    added = stream if change is None else change
    check_dtype(stream, weight, added)
    check_last_contiguous(stream=stream, change=added, weight=weight)
    out = torch.empty((rows, width), dtype=stream.dtype, device=stream.device)
    block = power_of_two(width)
    rms_norm_kernel[(rows,)](
        stream, added, weight, out, eps, stream.stride(0), added.stride(0), out.stride(0),
        WIDTH=width, BLOCK=block, HAS_CHANGE=change is not None, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out


def add_rms_norm_reference(stream: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch."""
    return rms_norm_reference(stream if change is None else stream.add_(change), weight, eps)


def variants(shape: KernelShape) -> list[Variant]:
    def launch(with_change: bool) -> None:
        stream, weight = shape.empty(1, shape.hidden_size), shape.empty(shape.hidden_size)
        add_rms_norm(stream, shape.empty(1, shape.hidden_size) if with_change else None, weight, 1e-6)

    return [
        Variant("rms_norm", lambda: launch(False)),
        Variant("rms_norm with residual", lambda: launch(True)),
    ]
