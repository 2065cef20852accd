"""Where the interpreter is not a matrix unit: there a row's sums are in the same order wherever it lies in its tile, in
the CPU's BLAS they are not. Tests of equal bits multiply as the unit does."""

from typing import Any

import numpy as np
import pytest


def dot_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(a: Any, b: Any, dtype: Any = None) -> Any:
        return np.einsum("mk,kn->mn", a, b, dtype=dtype, casting="unsafe")

    monkeypatch.setattr("triton.runtime.interpreter.np.matmul", multiply)
