"""Which cases to run of many parameters, and how far results may be off."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {
    torch.bfloat16: {"atol": 4e-3, "rtol": 1.6e-2},
    torch.float16: {"atol": 1e-3, "rtol": 2e-3},
    torch.float32: {"atol": 2e-6, "rtol": 1e-5},
}
Case = dict[str, Any]


def pairwise(parameters: Mapping[str, Sequence[Any]], seed: int = 0) -> list[Case]:
    """Few cases in which every pair of values of any two parameters occurs: greedily, the best of 30 drawn ones."""
    rng = random.Random(seed)
    names = list(parameters)
    missing = {(a, x, b, y) for a, b in itertools.combinations(names, 2) for x in parameters[a] for y in parameters[b]}

    def pairs(case: Case) -> set[tuple[Any, ...]]:
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    def drawn() -> Case:
        a, x, b, y = min(missing, key=repr) if rng.random() < 0.5 else rng.choice(sorted(missing, key=repr))
        return {name: rng.choice(parameters[name]) for name in names} | {a: x, b: y}

    cases = []
    while missing:
        case = max((drawn() for _ in range(30)), key=lambda case: len(pairs(case) & missing))
        cases.append(case)
        missing -= pairs(case)
    return cases


def full(parameters: Mapping[str, Sequence[Any]], crossed: Sequence[str], seed: int = 0) -> list[Case]:
    """Every combination of the crossed parameters, each with drawn values of the others."""
    rng = random.Random(seed)
    others = [name for name in parameters if name not in crossed]
    return [
        dict(zip(crossed, values, strict=True)) | {name: rng.choice(parameters[name]) for name in others}
        for values in itertools.product(*(parameters[name] for name in crossed))
    ]


def name(case: Case) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items())
