"""Roles of people, what each may do, and who may change which field of whom."""

from enum import StrEnum

from app.errors import Forbidden
from app.tenants.principal import Principal, Scope


class Role(StrEnum):
    """Owner: everything in the tenant. Admin: everything but owners. Member: works. Viewer: reads. Service: a key."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    SERVICE = "service"


WORK = frozenset({Scope.CHAT, Scope.ANSWERS, Scope.DOCUMENTS_READ, Scope.DOCUMENTS_WRITE})
_ADMIN = WORK | {Scope.KEYS, Scope.USAGE, Scope.ADMIN}
SCOPES: dict[Role, frozenset[Scope]] = {
    Role.OWNER: _ADMIN,
    Role.ADMIN: _ADMIN,
    Role.MEMBER: WORK,
    Role.VIEWER: frozenset({Scope.DOCUMENTS_READ, Scope.USAGE}),
    Role.SERVICE: frozenset(),  # a key's scopes are its own
}
# Roles that people can have; `service` is what keys are.
OF_PEOPLE = (Role.OWNER, Role.ADMIN, Role.MEMBER, Role.VIEWER)


def scopes_of(role: str, *, operator: bool) -> frozenset[str]:
    scopes = frozenset(scope.value for scope in SCOPES[Role(role)])
    return scopes | {Scope.OPERATOR.value} if operator else scopes


def require_change(actor: Principal, subject_id: object, subject_role: str, changes: dict[str, object]) -> None:
    """Authorise each field by itself. Raises Forbidden.

    name: oneself or an admin.  role, disabled, labels: an admin, and nobody for oneself (labels no more than held).
    Anything about an owner, and making one: an owner.  operator: an operator.
    """
    own = actor.user_id is not None and actor.user_id == subject_id
    if not own or set(changes) - {"name"}:
        actor.require(Scope.ADMIN)
    if own and set(changes) & {"role", "disabled", "labels"}:
        raise Forbidden("Nobody changes their own role, labels or access.")
    touches_owner = (not own and subject_role == Role.OWNER) or changes.get("role") == Role.OWNER
    if touches_owner and actor.role != Role.OWNER and Scope.OPERATOR not in actor.scopes:
        raise Forbidden("Only an owner changes an owner or makes one.")
    labels = changes.get("labels")
    if isinstance(labels, list):
        actor.require_labels(frozenset(labels))
    if "operator" in changes:
        actor.require(Scope.OPERATOR)
