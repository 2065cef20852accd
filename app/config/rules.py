"""What types alone do not catch. Each raises ConfigurationError."""

import ipaddress
import re

from app.config.sections import (
    AuthSettings,
    CacheSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
    OidcSettings,
    PriceSettings,
    RouteSettings,
    ServerSettings,
    StorageSettings,
    TargetSettings,
)
from app.errors import ConfigurationError

LOCAL = "local"  # name and kind of the target that the model of [engine] is
_ADAPTER = re.compile(r"[A-Za-z0-9._-]+")
STRATEGIES = ("order", "weight", "latency", "cost", "load", "affinity", "hybrid")


def validate_route(route: RouteSettings) -> None:
    """Raises ConfigurationError."""
    where = f"route {route.model!r}"
    if not route.model or not route.targets:
        raise ConfigurationError("every [[routes]] needs a model and at least one target")
    if route.cache_seconds < 0:
        raise ConfigurationError(f"{where}: cache_seconds must not be negative")
    if route.strategy not in STRATEGIES:
        raise ConfigurationError(f"{where}: there is no strategy {route.strategy!r}")
    if route.weights and (len(route.weights) != len(route.targets) or min(route.weights) < 0 or not any(route.weights)):
        raise ConfigurationError(f"{where}: weights must be one for each target, none negative and not all 0")


def validate_models(
    engine: EngineSettings, models: tuple[ModelSettings, ...], targets: tuple[TargetSettings, ...]
) -> None:
    """Names, and what can be known of the memory before a model's files are looked at. Raises ConfigurationError."""
    _validate_model_names(engine, models, targets)
    budget = engine.memory_budget_bytes
    if budget < 0:
        raise ConfigurationError("[engine] memory_budget_bytes must not be negative")
    every = ([(LOCAL, engine)] if engine.model else []) + [(model.name, model.over(engine)) for model in models]
    on_gpu = sum(one.device.startswith("cuda") for _, one in every)
    for name, one in every:
        where = f"model {name!r}"
        _validate_adapters(where, one)
        if not 1 <= one.quality <= 5:
            raise ConfigurationError(f"{where}: quality must lie between 1 and 5")
        if budget and one.kv_cache_bytes > budget:
            raise ConfigurationError(f"{where}: its kv_cache_bytes alone are more than memory_budget_bytes, {budget}")
        if one.device.startswith("cuda") and not one.kv_cache_bytes and (budget or on_gpu > 1):
            raise ConfigurationError(f"{where}: a model that shares a GPU needs kv_cache_bytes, else it takes it all")


def _validate_model_names(
    engine: EngineSettings, models: tuple[ModelSettings, ...], targets: tuple[TargetSettings, ...]
) -> None:
    names = [model.name for model in models]
    if len(set(names)) != len(names) or "" in names or LOCAL in names:
        raise ConfigurationError(f"every [[models]] needs a name of its own; {LOCAL!r} is the model of [engine]")
    for model in models:
        if not model.model:
            raise ConfigurationError(f"model {model.name!r} names no folder, hub model or stored model in `model`")
    every = [engine] * bool(engine.model) + [model.over(engine) for model in models]
    served = [name for one in every for name in (one.served_name, *one.adapter_models)]
    if len(set(served)) != len(served):
        raise ConfigurationError("every model needs a served_name of its own")
    for target in targets:
        if target.name in names and target.provider != LOCAL:
            raise ConfigurationError(f"target {target.name!r} has the name of a model of [[models]]")


def _validate_adapters(where: str, engine: EngineSettings) -> None:
    for entry in engine.adapters:
        name, _, folder = entry.partition("=")
        if not _ADAPTER.fullmatch(name) or not folder:
            named = "NAME=FOLDER, the name of letters, digits, '.', '_' and '-'"
            raise ConfigurationError(f"{where}: adapters has {entry!r}, which is not {named}")
    if len(engine.adapter_folders) != len(engine.adapters):
        raise ConfigurationError(f"{where}: every one of its adapters needs a name of its own")


def validate_price(price: PriceSettings) -> None:
    if not price.target:
        raise ConfigurationError("every [[prices]] names a target")
    if min(price.input, price.output, price.second) < 0 or price.cached_input < -1:
        raise ConfigurationError(f"the price of target {price.target!r} must not be negative")


def validate_identity(auth: AuthSettings, oidc: OidcSettings, server: ServerSettings) -> None:
    if auth.session_hours <= 0 or auth.login_attempts < 1:
        raise ConfigurationError("[auth] session_hours and login_attempts must be above 0")
    for network in auth.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise ConfigurationError(f"[auth] trusted_proxies: {network!r} is no network") from None
    if not oidc.issuer:
        return
    if not oidc.issuer.startswith(("https://", "http://127.0.0.1:", "http://localhost:")):
        raise ConfigurationError("[oidc] issuer must be https, except on this machine itself")
    if not (oidc.client_id and oidc.tenant and auth.encryption_key and server.public_url):
        needed = "[oidc] client_id and tenant, [auth] encryption_key and [server] public_url"
        raise ConfigurationError(f"[oidc] issuer needs {needed}")
    if oidc.default_role not in ("admin", "member", "viewer"):
        raise ConfigurationError("[oidc] default_role must be admin, member or viewer")


def validate_limits(limits: LimitSettings, log: LogSettings, targets: tuple[TargetSettings, ...]) -> None:
    for name in ("requests_per_minute", "tokens_per_minute", "concurrency", "assumed_output_tokens"):
        if getattr(limits, name) < 0:
            raise ConfigurationError(f"[limits] {name} must not be negative")
    if limits.overload_seconds < 0:
        raise ConfigurationError("[limits] overload_seconds must not be negative")
    longest = max((target.total_seconds for target in targets), default=0.0)
    if limits.lease_seconds <= longest:
        raise ConfigurationError(f"[limits] lease_seconds must be above the longest total_seconds, {longest:g}")
    if log.flush_seconds <= 0 or log.max_pending < 1 or log.retention_days < 1:
        raise ConfigurationError("[log] flush_seconds, max_pending and retention_days must be above 0")


def validate_server(server: ServerSettings, storage: StorageSettings) -> None:
    if server.role not in ("all", "gateway", "engine"):
        raise ConfigurationError(f"[server] role must be all, gateway or engine, not {server.role!r}")
    if storage.database_seconds <= 0:
        raise ConfigurationError("[storage] database_seconds must be above 0")


def validate_cache(cache: CacheSettings) -> None:
    if cache.semantic_seconds < 0 or cache.semantic_entries < 1:
        raise ConfigurationError("[cache] semantic_seconds must not be negative, semantic_entries be at least 1")
    for name in ("semantic_threshold", "semantic_audit"):
        if not 0 <= getattr(cache, name) <= 1:
            raise ConfigurationError(f"[cache] {name} must lie between 0 and 1")
    if not 0 < cache.semantic_max_error < 1:
        raise ConfigurationError("[cache] semantic_max_error must lie between 0 and 1")


def validate_target(target: TargetSettings) -> None:
    for name in ("connect_seconds", "timeout_seconds", "total_seconds", "breaker_seconds"):
        if getattr(target, name) <= 0:
            raise ConfigurationError(f"target {target.name!r}: {name} must be above 0")
    for name in ("idle_seconds", "max_context", "max_retries", "probe_seconds"):
        if getattr(target, name) < 0:
            raise ConfigurationError(f"target {target.name!r}: {name} must not be negative")
    if not 1 <= target.quality <= 5:
        raise ConfigurationError(f"target {target.name!r}: quality must lie between 1 and 5")
    if target.breaker_failures < 1:
        raise ConfigurationError(f"target {target.name!r}: breaker_failures must be at least 1")
