"""How hard a request is, from features that can be read off it, by a table of rules. Nothing is learned or hidden.

The level, 1 to 5, is the least quality that the `hybrid` strategy looks for in a target.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from app.gateway.schemas import ChatRequest

HARD_VERBS = re.compile(
    r"\b(analy[sz]e|compare|contrast|draft|redline|negotiat\w*|reconcile|assess|evaluate|argue|advise|opinion"
    r"|step by step|pros and cons|risk\w*)\b",
    re.IGNORECASE,
)
EASY_VERBS = re.compile(r"\b(translate|extract|list|classify|label|summari[sz]e|spell|define)\b", re.IGNORECASE)
CONDITIONS = re.compile(
    r"\b(unless|except|notwithstanding|provided that|subject to|however|if and only if)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Features:
    prompt_tokens: int
    turns: int
    questions: int
    hard_verbs: int
    easy_verbs: int
    conditions: int
    has_tools: bool
    has_schema: bool
    has_code: bool


@dataclass(frozen=True)
class Rule:
    name: str
    points: int
    applies: Callable[[Features], bool]


RULES = (
    Rule("asks for analysis, drafting or judgement", 2, lambda f: f.hard_verbs > 0),
    Rule("asks for several such things", 1, lambda f: f.hard_verbs > 2),
    Rule("weighs conditions and exceptions", 1, lambda f: f.conditions > 1),
    Rule("long prompt (over 4,000 tokens)", 1, lambda f: f.prompt_tokens > 4_000),
    Rule("several questions", 1, lambda f: f.questions > 2),
    Rule("long conversation (over 8 turns)", 1, lambda f: f.turns > 8),
    Rule("uses tools", 1, lambda f: f.has_tools),
    Rule("contains code", 1, lambda f: f.has_code),
    Rule("simple operation on given text", -1, lambda f: f.easy_verbs > 0 and not f.hard_verbs),
)


@dataclass(frozen=True)
class Complexity:
    """`because`: the rules that applied, with their points."""

    level: int
    because: tuple[str, ...]


def features(request: ChatRequest, prompt_tokens: int) -> Features:
    """Verbs and questions are looked for in the last message alone: that is the task."""
    task = request.messages[-1].text[-8_000:]
    return Features(
        prompt_tokens=prompt_tokens,
        turns=len(request.messages),
        questions=task.count("?"),
        hard_verbs=len(HARD_VERBS.findall(task)),
        easy_verbs=len(EASY_VERBS.findall(task)),
        conditions=len(CONDITIONS.findall(task)),
        has_tools="tools" in request.upstream_only,
        has_schema="response_format" in request.upstream_only,
        has_code="```" in task,
    )


def complexity(found: Features) -> Complexity:
    """One, and a level more for each point, up to five."""
    applied = [rule for rule in RULES if rule.applies(found)]
    level = max(1, min(5, 1 + sum(rule.points for rule in applied)))
    return Complexity(level, tuple(f"{rule.name} ({rule.points:+d})" for rule in applied))
