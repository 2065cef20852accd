"""/api/v1/routes: which way a request would go, and why."""

from dataclasses import replace
from typing import Annotated

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta, Struct

from app.gateway.routing import Decision
from app.gateway.schemas import RouteHints
from app.gateway.service import Gateway
from app.gateway.wire import ChatCompletionRequest, to_request
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class ExplainRequest(Struct, forbid_unknown_fields=True):
    """A request as it would be sent to /v1/chat/completions, with what its x-precedent headers would say."""

    request: ChatCompletionRequest
    session: Annotated[str, Meta(max_length=200)] = ""
    regions: list[str] = []
    privileged: bool = False
    ttft_ms: Annotated[float, Meta(gt=0)] | None = None
    batch: bool = False


class VerdictView(Struct):
    """`rank`: the target's turn, from 1; null where it may not serve."""

    target: str
    rank: int | None
    reason: str


class ComplexityView(Struct):
    level: int
    because: list[str]


class DecisionView(Struct):
    model: str
    strategy: str
    targets: list[VerdictView]
    complexity: ComplexityView | None
    expected_prompt_tokens: int
    expected_completion_tokens: int
    expected_cost_micros: int


class RouteController(Controller):
    path = "/api/v1/routes"
    tags = ("routes",)

    @post(
        "/explain",
        status_code=200,
        guards=[requires_scope(Scope.CHAT)],
        summary="Which way would this request go, and why",
    )
    async def explain(
        self,
        data: JSONBody[ExplainRequest],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> DecisionView:
        """Nothing is sent, reserved or recorded. Weights are drawn anew each time."""
        hints = RouteHints(data.session, frozenset(data.regions), data.privileged, data.ttft_ms, data.batch)
        label = principal.access_atoms(principal.labels)
        asked = replace(to_request(data.request, label), hints=hints)
        decision = await gateway.explain(principal, asked)
        cost = gateway.board.prices.most(decision.order, decision.model, decision.expected)
        return _view(decision, cost)


def _view(decision: Decision, cost_micros: int) -> DecisionView:
    hard = decision.complexity
    return DecisionView(
        model=decision.model,
        strategy=decision.strategy,
        targets=[VerdictView(v.target, v.rank, v.reason) for v in decision.verdicts],
        complexity=ComplexityView(hard.level, list(hard.because)) if hard else None,
        expected_prompt_tokens=decision.expected.prompt_tokens,
        expected_completion_tokens=decision.expected.completion_tokens,
        expected_cost_micros=cost_micros,
    )
