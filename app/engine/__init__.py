"""Token ids in, token ids out: the in-process inference engine."""

import os

# Waiting OpenMP threads sleep instead of spinning. Measured on two shared cores: with the default every parallel
# region waits for whoever holds the other core, 3-4x slower. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from app.engine.async_engine import AsyncEngine, EngineDelta
from app.engine.config import EngineConfig, SamplingParams
from app.engine.engine import EngineStats, LLMEngine
from app.engine.request import EngineError, Request, RequestMetrics, RequestOutput, TokenSegment
from app.engine.tokenizer import ChatPiece, Tokenizer

__all__ = [
    "AsyncEngine",
    "ChatPiece",
    "EngineConfig",
    "EngineDelta",
    "EngineError",
    "EngineStats",
    "LLMEngine",
    "Request",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "TokenSegment",
    "Tokenizer",
]
