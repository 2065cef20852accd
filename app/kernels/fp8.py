"""e4m3 (Micikevicius and others, arXiv:2209.05433) in plain PyTorch: numbers to codes, and codes to numbers."""

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


def encoded(x: Tensor, scale: Tensor) -> Tensor:
    """e4m3 codes of x / scale, which broadcast; what is too large becomes the largest, which torch's cast leaves to
    the device."""
    return (x.float() / scale).clamp_(-LARGEST, LARGEST).to(E4M3)


def widened(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that e4m3 codes are, exactly, in float32 or bfloat16; for NaN, on a CPU, 480.

    torch 2.13 casts one by one on a CPU. There the bits are shifted to where float16 and bfloat16 have them, and a
    power of two makes up for the other bias, which is ten times as fast.
    """
    if codes.device.type != "cpu":
        return codes.to(dtype)
    words = codes.view(torch.int8).to(torch.int16)
    if dtype is torch.bfloat16:
        return words.bitwise_left_shift_(4).bitwise_and_(-0x7810).view(torch.bfloat16).mul_(2.0**120)
    return words.bitwise_left_shift_(7).bitwise_and_(-0x4080).view(torch.float16).float().mul_(2.0**8).to(dtype)
