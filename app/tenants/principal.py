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


@dataclass(frozen=True)
class Principal:
    """A tenant's key at work. `labels` are the matters it holds."""

    tenant_id: UUID
    tenant: str
    key_id: UUID
    scopes: frozenset[str]
    labels: frozenset[str]

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
