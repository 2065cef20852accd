"""e4m3 within kernels; fp8.py is the reference."""

import triton
import triton.language as tl


@triton.jit
def to_e4m3(x, INTERPRETED: tl.constexpr):
    """float32 to codes, to the nearest, what is too large to the largest.

    Triton's interpreter (3.7) cuts small numbers and loses a carry into the exponent; there x is rounded first, to
    three bits behind the leading one, or to multiples of 2^-9 where e4m3 has no leading one.
    """
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        small = (x + 24576.0) - 24576.0
        x = tl.where(tl.abs(x) < 0.015625, small, bits.to(tl.float32, bitcast=True))
    return x.to(tl.float8e4nv)
