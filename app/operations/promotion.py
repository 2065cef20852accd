"""`precedent route promote`: a target becomes the first of a route, where the quality gate has let it through.

A gate counts for the target that it names (`precedent eval gate --target`), the latest of the last days: what is behind
a target's name may change, and the reports with it. Running servers take the change over within seconds.
"""

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import RouteSettings, Settings
from app.db import Database, now
from app.errors import Conflict, InvalidRequest, NotFound
from app.gateway import catalog
from app.gateway.routing import Router
from app.operations.gate import ACTION
from app.tenants import audit
from app.tenants.models import AuditEntry
from app.tenants.sealing import Sealer

COUNTS_DAYS = 30


async def promote(database: Database, settings: Settings, model: str, target: str, forced: str = "") -> RouteSettings:
    """The route as it is from now on. forced: why without a gate.

    Raises NotFound for an unknown route or target, InvalidRequest where something else than the order decides, Conflict
    where no gate has passed and nothing is forced, or where somebody else changed the configuration meanwhile.
    """
    stored = await catalog.read_stored(database, Sealer(settings.auth.encryption_key))
    route = _route(Router(catalog.overlaid(settings, stored.entries)), model, target)
    targets = (target, *(name for name in route.targets if name != target))
    body = {**_given(route), "model": model, "targets": list(targets)}
    made = catalog.checked(catalog.ROUTES, body)
    assert isinstance(made, RouteSettings)
    async with database.session() as session:
        passed = await _passed(session, target)
        if passed is None and not forced:
            raise Conflict(
                f"No quality gate has let {target!r} through in the last {COUNTS_DAYS} days: run "
                f"`precedent eval gate --baseline A --candidate B --target {target}`, or say why not with --force."
            )
        await catalog.require_unchanged(session, stored)  # the order was made from what the route was then
        await catalog.put_entry(session, catalog.ROUTES, model, body)
        detail = {"targets": list(targets), "before": list(route.targets), "gate": passed, "forced": forced}
        await audit.append(session, audit.CLI, "route.promote", f"route:{model}", None, detail)
        await session.commit()
    return made


def _route(router: Router, model: str, target: str) -> RouteSettings:
    route = router.routes.get(model)
    if route is None:
        raise NotFound(f"There is no route {model!r}.")
    if target not in router.targets:
        raise NotFound(f"There is no target {target!r}.")
    if route.strategy != "order":
        raise InvalidRequest(f"Route {model!r} goes by {route.strategy}, not by the order of its targets.")
    return route


def _given(route: RouteSettings) -> Mapping[str, Any]:
    """What differs from the defaults, as the API takes it."""
    given = {one.name: getattr(route, one.name) for one in dataclasses.fields(route)}
    changed = {one.name for one in dataclasses.fields(route) if given[one.name] != one.default}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if name in changed
    }


async def _passed(session: AsyncSession, target: str) -> int | None:
    """The number in the audit log of the target's latest gate, where that one passed."""
    recent = select(AuditEntry).where(
        AuditEntry.action == ACTION, AuditEntry.created_at > now() - timedelta(days=COUNTS_DAYS)
    )
    for entry in await session.scalars(recent.order_by(AuditEntry.seq.desc())):
        if entry.detail.get("target") == target:
            return entry.seq if entry.detail["verdict"] == "passed" else None
    return None
