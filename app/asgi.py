"""create_app(settings): the application, as explicit lists of what it serves and how it fails."""

import gc
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins import PluginProtocol
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from litestar.status_codes import (
    HTTP_404_NOT_FOUND,
    HTTP_405_METHOD_NOT_ALLOWED,
    HTTP_413_REQUEST_ENTITY_TOO_LARGE,
)

from app import __version__, telemetry
from app.config import Settings
from app.console.controllers import Documentation, asset, console
from app.console.pulse import Pulse
from app.errors import AppError, Forbidden, InvalidRequest, NotFound, PayloadTooLarge, Unauthenticated
from app.gateway.controllers import ChatController
from app.gateway.controllers_anthropic import MessagesController
from app.gateway.controllers_budgets import BudgetController
from app.gateway.controllers_cache import SemanticCacheController
from app.gateway.controllers_catalog import (
    ConfigController,
    CredentialController,
    PriceController,
    RouteTableController,
    TargetController,
    provide_editor,
)
from app.gateway.controllers_engine import EngineController, watch
from app.gateway.controllers_models import ModelController
from app.gateway.controllers_replica import ReplicaController
from app.gateway.controllers_requests import RequestController, get_series, get_usage
from app.gateway.controllers_routes import RouteController
from app.rag.api.cache import test_cache
from app.rag.api.conversations import ConversationController
from app.rag.api.documents import DocumentController, answer, search
from app.rag.api.evaluation import CaseController, give_feedback, list_feedback
from app.rag.api.evidence import get_evidence
from app.rag.api.index import IndexController
from app.rag.api.jobs import JobController
from app.rag.api.rights import get_index_report, get_page_image, put_labels, repair_index
from app.services import Services, open_services
from app.tenants.auth import PUBLIC, provide_principal, requires_key
from app.tenants.controllers import KeyController, me
from app.tenants.controllers_matters import MatterController
from app.tenants.controllers_session import SessionController
from app.tenants.controllers_tenants import TenantController, list_audit, own_tenant
from app.tenants.controllers_users import UserController

log = telemetry.logger(__name__)
Handler = Any


# What is served where there are documents.
LIBRARY = (
    DocumentController,
    JobController,
    IndexController,
    put_labels,
    get_page_image,
    get_index_report,
    repair_index,
    search,
    answer,
    ConversationController,
    give_feedback,
    list_feedback,
    CaseController,
    test_cache,
    get_evidence,
)


@get("/health/live", opt=PUBLIC, tags=["health"], summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "live"}


@get("/health/ready", opt=PUBLIC, tags=["health"], summary="Everything configured can serve")
async def ready(services: NamedDependency[Services]) -> Response[dict[str, Any]]:
    """503 with the reasons by component while a model loads, after one failed, or without the database."""
    reasons = services.not_ready()
    try:
        await services.database.ping()
    except Exception as error:
        reasons["database"] = f"does not answer: {type(error).__name__}"
    body: dict[str, Any] = {"status": "not ready" if reasons else "ready", "reasons": reasons}
    return Response(body, status_code=503 if reasons else 200)


@get("/metrics", opt=PUBLIC, tags=["health"], summary="Metrics for Prometheus", include_in_schema=False)
async def metrics(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[bytes]:
    """With the token of the settings; without one for callers on this machine alone."""
    token = services.settings.telemetry.metrics_token
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token and not secrets.compare_digest(sent.encode(), token.encode()):
        raise Unauthenticated("/metrics needs the token of telemetry.metrics_token.")
    if not token and not _is_local(request):
        raise Forbidden("/metrics answers this machine alone while telemetry.metrics_token is empty.")
    body, media_type = services.metrics.exposition()
    return Response(body, media_type=media_type)


def _is_local(request: Request[Any, Any, Any]) -> bool:
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:  # no address: a test client
        return False


def create_app(settings: Settings | None = None) -> Litestar:
    """The ASGI application; settings are loaded where none are given."""
    settings = settings or Settings.load()
    models = Router("/", route_handlers=[ChatController, MessagesController])
    has_pages = settings.server.role != "engine"
    ours = [console, asset] if has_pages else []
    return Litestar(
        route_handlers=[
            live,
            ready,
            metrics,
            me,
            KeyController,
            UserController,
            MatterController,
            SessionController,
            RouteController,
            TargetController,
            RouteTableController,
            PriceController,
            CredentialController,
            ConfigController,
            BudgetController,
            SemanticCacheController,
            RequestController,
            EngineController,
            ModelController,
            ReplicaController,
            watch,
            get_usage,
            get_series,
            TenantController,
            own_tenant,
            list_audit,
            *(LIBRARY if settings.has_documents else ()),
            models,
            *ours,
        ],
        guards=[requires_key],
        dependencies=_dependencies(),
        exception_handlers=_handlers(),
        lifespan=[partial(_lifespan, settings)],
        openapi_config=_openapi(Documentation() if has_pages else JsonRenderPlugin()),
        plugins=_plugins(settings),
        request_max_body_size=settings.server.max_body_bytes,
        # Errors are rendered here for every caller alike; nothing of the server's inside is shown.
        debug=False,
    )


@asynccontextmanager
async def _lifespan(settings: Settings, app: Litestar) -> AsyncIterator[None]:
    telemetry.configure_logging(settings.telemetry)
    async with open_services(settings) as services:
        app.state.services = services
        app.state.authenticator = services.authenticator
        pulse = Pulse(services.events, services.gateway, services.database)
        await pulse.start()
        # What is loaded by now stays: the collector need not walk through it again and again while requests wait.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await pulse.stop()
    gc.unfreeze()
    telemetry.flush_traces()


def _dependencies() -> dict[str, Provide]:
    def service(name: str) -> Provide:
        def provide(state: State) -> Any:
            return getattr(state.services, name)

        return Provide(provide, sync_to_thread=False)

    def services(state: State) -> Services:
        found: Services = state.services
        return found

    def of_library(name: str) -> Provide:
        def provide(state: State) -> Any:
            return getattr(state.services.library, name)

        return Provide(provide, sync_to_thread=False)

    own = (
        "settings", "database", "gateway", "embeddings", "authenticator", "logins", "sign_on", "sealer", "meter",
        "reloader", "events", "matters",
    )  # fmt: skip
    library = (
        "documents", "answers", "jobs", "job_control", "index", "relabelling", "pages", "reconciler", "conversations",
        "feedback", "cases",
    )  # fmt: skip
    return {
        "services": Provide(services, sync_to_thread=False),
        "principal": Provide(provide_principal, sync_to_thread=False),
        "editor": Provide(provide_editor, sync_to_thread=False),
        **{name: service(name) for name in own},
        **{name: of_library(name) for name in library},
        "searching": of_library("search"),
    }


def _plugins(settings: Settings) -> list[PluginProtocol]:
    """A span for each request, where anybody records spans; the walk's own spans hang below it."""
    if not telemetry.configure_tracing(settings.telemetry):
        return []
    return [OpenTelemetryPlugin(OpenTelemetryConfig(exclude_spans=["receive", "send"]))]


def _openapi(page: OpenAPIRenderPlugin) -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", description="An API key, prc_…")
    return OpenAPIConfig(
        title="Precedent",
        version=__version__,
        openapi_router=Router("/docs", route_handlers=[], opt=PUBLIC, include_in_schema=False),
        render_plugins=[page],
        components=Components(security_schemes={"key": bearer}),
        security=[{"key": []}],
    )


def _dialect(path: str) -> str:
    """The dialect of a path's callers: anthropic, openai or problem."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "problem"


def _handlers() -> dict[Any, Handler]:
    """One handler per kind of exception, answering in the caller's dialect; also for guards and unknown paths."""

    def render(request: Request[Any, Any, Any], error: AppError) -> Response[dict[str, Any]]:
        dialect = _dialect(request.scope["path"])
        media_type = "application/problem+json" if dialect == "problem" else "application/json"
        body: dict[str, Any] = getattr(error, dialect)()
        return Response(body, status_code=error.status, media_type=media_type, headers=error.headers)

    def application_error(request: Request[Any, Any, Any], error: AppError) -> Response[dict[str, Any]]:
        if error.status >= 500:
            log.warning("request failed", code=error.code, detail=error.detail, path=request.scope["path"])
        return render(request, error)

    def framework_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
        return render(request, _translate(error))

    def unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
        log.error("unexpected error", path=request.scope["path"], exc_info=error)
        return render(request, AppError("The server made a mistake; it has been logged."))

    return {AppError: application_error, HTTPException: framework_error, Exception: unexpected}


class _FrameworkError(AppError):
    """A status of the framework's for which the tree has no class of its own, such as 405."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # type: ignore[misc]  # a class variable everywhere else
        self.code = "method_not_allowed" if status == HTTP_405_METHOD_NOT_ALLOWED else "http_error"  # type: ignore[misc]
        self.openai_type = "invalid_request_error"  # type: ignore[misc]


def _translate(error: HTTPException) -> AppError:
    """The framework's own exceptions in our tree; a validation error names the field."""
    if error.status_code == HTTP_404_NOT_FOUND:
        return NotFound("There is nothing at this address.")
    if error.status_code == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
        return PayloadTooLarge("The request body is larger than this server accepts.")
    if error.status_code != 400:
        return _FrameworkError(error.status_code, error.detail)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, msgspec.DecodeError) and not isinstance(cause, msgspec.ValidationError):
        return InvalidRequest(f"The body is not valid JSON: {cause}.")
    entries = error.extra if isinstance(error.extra, list) else []
    faults = [f"{e.get('key', 'body')}: {e.get('message', '')}" for e in entries if isinstance(e, dict)]
    param = next((e.get("key") for e in entries if isinstance(e, dict) and e.get("key")), None)
    return InvalidRequest("; ".join(faults) or error.detail, param=param)
