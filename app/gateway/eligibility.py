"""Which targets may and can serve a request. The same for every strategy and every fallback, and it fails closed."""

from app.config import TargetSettings
from app.errors import AppError, Forbidden, InvalidRequest
from app.gateway.capabilities import needs, refusal, too_long
from app.gateway.providers.base import Provider
from app.gateway.schemas import ChatRequest
from app.tenants.principal import Principal


def objection(
    principal: Principal, request: ChatRequest, target: TargetSettings, provider: Provider
) -> AppError | None:
    """Why the target must not or cannot serve the request; None where it may."""
    return (
        _region(principal, request, target)
        or _privilege(principal, request, target)
        or _capability(request, provider)
        or too_long(request, target.max_context)
    )


def _region(principal: Principal, request: ChatRequest, target: TargetSettings) -> AppError | None:
    """Both what the tenant is bound to and what the request asks for; a target of unknown region is in neither."""
    for allowed in (principal.regions, request.hints.regions):
        if allowed and target.region not in allowed:
            where = f"in {target.region!r}" if target.region else "in no known region"
            return Forbidden(f"It computes {where}; allowed: {', '.join(sorted(allowed))}.")
    return None


def _privilege(principal: Principal, request: ChatRequest, target: TargetSettings) -> AppError | None:
    if (principal.privileged or request.hints.privileged) and not target.privileged:
        return Forbidden("It is not cleared for material under privilege.")
    return None


def _capability(request: ChatRequest, provider: Provider) -> AppError | None:
    missing = needs(request) - provider.takes
    return refusal(request.model, missing) if missing else None


def refused_by_all(model: str, objections: list[AppError]) -> AppError:
    """The caller's error where every target has an objection.

    What the request itself can mend comes first: a target that only finds it too long would otherwise have served it.
    """
    fits_nowhere = [error for error in objections if error.code == "context_length_exceeded"]
    if fits_nowhere:
        return fits_nowhere[-1]
    for error in objections:
        if isinstance(error, InvalidRequest):
            return error
    return Forbidden(f"No target of the model {model!r} may serve this request. {objections[0].detail}")
