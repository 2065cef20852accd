"""From config.json's quantization_config to the format that reads the checkpoint's layers."""

import json
from pathlib import Path

from app.engine.quant.bitsandbytes import BitsAndBytes
from app.engine.quant.format import Format, Json
from app.engine.quant.int4 import Awq, Gptq
from app.engine.quant.scaled import CompressedTensors, Fp8

FORMATS: dict[str, type[Awq | Gptq | CompressedTensors | Fp8 | BitsAndBytes]] = {
    "awq": Awq,
    "gptq": Gptq,
    "compressed-tensors": CompressedTensors,
    "fp8": Fp8,
    "fbgemm_fp8": Fp8,
    "bitsandbytes": BitsAndBytes,
}


def read_format(folder: Path) -> Format | None:
    """None: the weights are plain. Raises ValueError for a method, or a setting of one, that is not supported."""
    config: Json = json.loads((folder / "config.json").read_text())
    found: Json | None = config.get("quantization_config") or config.get("compression_config")
    if found is None:
        return None
    method = found.get("quant_method", "")
    if method not in FORMATS:
        raise ValueError(f"quant_method {method!r} is not supported; supported are {', '.join(FORMATS)}")
    return FORMATS[method].of(found)
