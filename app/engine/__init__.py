"""Token ids in, token ids out: the in-process inference engine."""

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
