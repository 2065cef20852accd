"""One request's line in the log and in the ledger, filled in while it is served."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from app.db import now
from app.gateway.prices import Cost
from app.tenants.principal import Principal

MAX_ERROR = 500
Row = dict[str, Any]


@dataclass(slots=True)
class Record:
    """Fields are the columns of the request log."""

    tenant_id: UUID
    key_id: UUID | None
    user_id: UUID | None
    endpoint: str
    streamed: bool
    model: str
    id: UUID = field(default_factory=uuid7)
    created_at: datetime = field(default_factory=now)
    target: str = ""
    status: str = ""
    error: str | None = None
    fallbacks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_micros: int = 0
    cache: str = ""
    first_delta_ms: float = 0.0
    total_ms: float = 0.0
    routing: dict[str, Any] = field(default_factory=dict)
    spans: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, principal: Principal, endpoint: str, model: str, *, streamed: bool) -> "Record":
        return cls(principal.tenant_id, principal.key_id, principal.user_id, endpoint, streamed, model[:200])

    def fail(self, status: str, detail: str) -> None:
        self.status, self.error = status, detail[:MAX_ERROR]

    def row(self) -> Row:
        return {name: getattr(self, name) for name in _COLUMNS}

    def summary(self) -> Row:
        """For who watches requests as they end."""
        return {name: getattr(self, name) for name in _COLUMNS if name not in ("tenant_id", "routing", "spans")}

    def ledger_row(self, cost: Cost) -> Row:
        entry = {name: getattr(self, name) for name in _SHARED}
        lines = {f"{name}_micros": amount for name, amount in cost.lines().items()}
        return {**entry, **lines, "id": uuid7(), "request_id": self.id, "amount_micros": cost.total}


_COLUMNS = tuple(f.name for f in fields(Record))
_SHARED = (
    "tenant_id",
    "key_id",
    "user_id",
    "created_at",
    "model",
    "target",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
)
