"""What every launcher needs: checks that answer in one clear sentence, and the size of a grid."""

import functools

import torch
import triton
from torch import Tensor
from triton.compiler import max_shared_mem

from app.kernels.fp8 import E4M3
from app.kernels.pages import KVPages

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = range(16, 257, 16)
_DEEP_PIPELINE = 160 * 1024  # bytes of shared memory
_PROGRAMS_PER_PROCESSOR = 4  # of a kernel whose programs take tasks in turns


def is_interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def upcast(dtype: torch.dtype) -> bool:
    """Triton's interpreter computes bfloat16 on its raw bits, without an error: there the kernels widen it first."""
    return dtype is torch.bfloat16 and is_interpreted()


def check_dtype(*tensors: Tensor) -> None:
    dtype = tensors[0].dtype
    if dtype not in DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"kernels take {known}, not {str(dtype).removeprefix('torch.')}")
    if any(tensor.dtype is not dtype for tensor in tensors):
        found = ", ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        raise ValueError(f"kernels take operands of one dtype, not {found}")


def check_pages(operand: Tensor, pages: KVPages) -> None:
    if pages.scales is None:
        return check_dtype(operand, pages.keys, pages.values)
    check_dtype(operand)
    if pages.keys.dtype is not E4M3 or pages.values.dtype is not E4M3:
        raise ValueError(f"scaled pages hold float8_e4m3fn, not {pages.keys.dtype} and {pages.values.dtype}")


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    if head_dim not in HEAD_DIMS:
        low, high, step = HEAD_DIMS[0], HEAD_DIMS[-1], HEAD_DIMS.step
        raise ValueError(
            f"head size {head_dim} is not supported; supported are multiples of {step} from {low} to {high}"
        )
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key/value heads evenly")


def check_last_contiguous(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension; its strides are {tensor.stride()}")


@functools.cache
def num_programs(device: torch.device) -> int:
    """Of a persistent kernel. The interpreter gets few, so that each takes several tasks there too."""
    if device.type != "cuda":
        return 3
    return _PROGRAMS_PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def has_room(device: torch.device) -> bool:
    """Whether shared memory holds a deep pipeline (A100 and later data-centre GPUs)."""
    if device.type != "cuda":
        return True
    return int(max_shared_mem(device.index or 0)) >= _DEEP_PIPELINE


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
