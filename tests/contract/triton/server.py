"""A model behind NVIDIA's own Triton server, run by an interpreter that has nvidia-pytriton: python server.py PORT."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

WORDS = ("The ", "rent ", "is ", "due")


def words(requests: list[Any]) -> Iterator[list[dict[str, Any]]]:
    for word in WORDS:
        yield [{"text_output": np.array([[word.encode()]], dtype=object)} for _ in requests]


def main(port: int) -> None:
    text = {"dtype": bytes, "shape": (1,)}
    with Triton(config=TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2)) as triton:
        triton.bind(
            model_name="words",
            infer_func=words,
            inputs=[Tensor(name="text_input", **text)],
            outputs=[Tensor(name="text_output", **text)],
            config=ModelConfig(batching=False, decoupled=True),
        )
        triton.serve()


main(int(sys.argv[1]))
