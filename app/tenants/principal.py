"""The caller, as every room below the door sees it."""

import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from app.errors import Forbidden, InvalidRequest

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Scope(StrEnum):
    """What a key may do."""

    CHAT = "chat"
    ANSWERS = "answers"
    DOCUMENTS_READ = "documents:read"
    DOCUMENTS_WRITE = "documents:write"
    KEYS = "keys"
    USAGE = "usage"
    ADMIN = "admin"
    OPERATOR = "operator"
    ENGINE = "engine"


# What a tenant's own keys can hold; `operator` is for who runs the installation, `engine` for its own gateways.
TENANT_SCOPES = frozenset(scope.value for scope in Scope) - {Scope.OPERATOR.value, Scope.ENGINE.value}


class Window(StrEnum):
    """What a budget is for: a UTC day, a UTC month, or ever."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True)
class Allowance:
    """Most requests and tokens in a minute and requests at once; None: no limit of its own."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class BudgetLimit:
    """A budget that a caller draws on. `owner`: tenant, key or user."""

    id: UUID
    owner: str
    owner_id: UUID
    window: Window
    limit_micros: int


@dataclass(frozen=True)
class Principal:
    """A tenant's key or person at work. `labels` are the matters held, inherited ones included and without those behind
    an ethical wall, which are `denied`; `models` and `networks`: empty means any.
    """

    tenant_id: UUID
    tenant: str
    key_id: UUID | None
    scopes: frozenset[str]
    labels: frozenset[str]
    user_id: UUID | None = None
    tenant_allowance: Allowance = Allowance()
    allowance: Allowance = Allowance()
    budgets: tuple[BudgetLimit, ...] = ()
    regions: frozenset[str] = frozenset()
    privileged: bool = False
    role: str = "service"
    models: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    denied: frozenset[str] = frozenset()

    @property
    def owner_id(self) -> UUID:
        """Whose the things are that are nobody else's: the person's, through whatever key; else the key's."""
        owner = self.user_id or self.key_id
        assert owner is not None, "a principal is a person or a key"
        return owner

    def may_use(self, model: str) -> bool:
        """Whether the key's list of models, if it has one, names the model."""
        return not self.models or model in self.models

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the key has the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope.value!r}.")

    def require_labels(self, labels: frozenset[str]) -> None:
        """Raise unless every label is well formed and held: nobody files under a matter they cannot read."""
        for label in sorted(labels):
            if not LABEL.fullmatch(label):
                raise InvalidRequest(f"The label {label!r} is not a valid matter name.", param="labels")
        missing = labels - self.labels
        if missing:
            raise Forbidden(f"This key does not hold the label {sorted(missing)[0]!r}.")

    def access_atoms(self, labels: frozenset[str]) -> frozenset[str]:
        """The access label of text filed under `labels`: who shares its computed state must hold all of these."""
        return frozenset({f"tenant:{self.tenant_id}", *(f"matter:{self.tenant_id}:{name}" for name in labels)})
