"""RMSNorm with and without the residual addition, against its reference."""

import pytest
import torch

from app.kernels.rms_norm import add_rms_norm, add_rms_norm_reference
from tests.kernels.sweep import DTYPES, TOLERANCE


@pytest.mark.parametrize("width", [64, 96, 1000, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_change", [False, True])
def test_equals_the_reference(width: int, dtype: str, with_change: bool, device: torch.device) -> None:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(DTYPES[dtype])

    stream, weight = drawn(5, width + 16)[:, :width], drawn(width)
    change = drawn(5, width) if with_change else None
    wanted_stream = stream.float().clone()
    wanted = add_rms_norm_reference(wanted_stream, change.float() if change is not None else None, weight.float(), 1e-6)
    out = add_rms_norm(stream, change, weight, 1e-6)
    torch.testing.assert_close(out.float(), wanted, **TOLERANCE[out.dtype])
    torch.testing.assert_close(stream.float(), wanted_stream, **TOLERANCE[out.dtype])


def test_rows_that_do_not_fit_are_refused(device: torch.device) -> None:
    x = torch.zeros(1, 70_000, device=device)
    with pytest.raises(ValueError, match="rms_norm takes rows of at most 65536 values, not 70000"):
        add_rms_norm(x, None, x[0], 1e-6)
