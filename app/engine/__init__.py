"""Token ids in, token ids out: the in-process inference engine.

Names are imported when first used, so that the torch-free parts (scheduler, blocks, prefix) stay torch-free.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.engine.async_engine import AsyncEngine
    from app.engine.config import EngineConfig, SamplingParams
    from app.engine.cost import TTFTPrediction
    from app.engine.delta import EngineDelta
    from app.engine.engine import LLMEngine
    from app.engine.facts import EngineLoad, EngineStats, PromptKeys
    from app.engine.grammar import Grammar
    from app.engine.request import EngineError, Request, RequestMetrics, RequestOutput, TokenSegment, choices
    from app.engine.spec.counts import SpeculationCounts
    from app.engine.tokenizer import ChatPiece, Tokenizer

__all__ = [
    "AsyncEngine",
    "ChatPiece",
    "EngineConfig",
    "EngineDelta",
    "EngineError",
    "EngineLoad",
    "EngineStats",
    "Grammar",
    "LLMEngine",
    "PromptKeys",
    "Request",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SpeculationCounts",
    "TTFTPrediction",
    "TokenSegment",
    "Tokenizer",
    "choices",
]

_HOMES = {
    "async_engine": ("AsyncEngine",),
    "config": ("EngineConfig", "SamplingParams"),
    "cost": ("TTFTPrediction",),
    "delta": ("EngineDelta",),
    "engine": ("LLMEngine",),
    "grammar": ("Grammar",),
    "facts": ("EngineLoad", "EngineStats", "PromptKeys"),
    "request": ("EngineError", "Request", "RequestMetrics", "RequestOutput", "TokenSegment", "choices"),
    "spec.counts": ("SpeculationCounts",),
    "tokenizer": ("ChatPiece", "Tokenizer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'app.engine' has no attribute {name!r}")
    return getattr(import_module(f"app.engine.{_HOME_OF[name]}"), name)
