"""Settings: frozen dataclasses, read once from `precedent.toml` and the environment. See app/config/settings.py."""

from app.config.rules import LOCAL
from app.config.sections import (
    REPOSITORY,
    AuthSettings,
    CacheSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
    OidcSettings,
    PriceSettings,
    RagSettings,
    RouteSettings,
    ServerSettings,
    StorageSettings,
    TargetSettings,
    TelemetrySettings,
)
from app.config.settings import LISTS, Settings, documented, entry, settings_page

__all__ = [
    "LISTS",
    "LOCAL",
    "REPOSITORY",
    "AuthSettings",
    "CacheSettings",
    "EngineSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "OidcSettings",
    "PriceSettings",
    "RagSettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "StorageSettings",
    "TargetSettings",
    "TelemetrySettings",
    "documented",
    "entry",
    "settings_page",
]
