"""Settings: frozen dataclasses, read once from `precedent.toml` and the environment.

A value comes from the first of: environment variable, file, default. The variable of field `f` in section `s`
is `PRECEDENT_S_F` in capitals; `PRECEDENT_MODEL` is short for `PRECEDENT_ENGINE_MODEL`. A variable with `_FILE` behind
its name names a file that holds the value. Models, targets, routes and prices are lists and come from the file alone.
Every field carries its documentation, from which `docs/settings.md` is made.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from app.config.reading import build, build_list, overrides, read_file, variable, variables_of
from app.config.rules import (
    LOCAL,
    validate_cache,
    validate_identity,
    validate_limits,
    validate_models,
    validate_price,
    validate_route,
    validate_server,
    validate_target,
)
from app.config.sections import (
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
from app.errors import ConfigurationError


@dataclass(frozen=True)
class Settings:
    """Everything the process was configured with. Built by `Settings.load()` alone, or in tests by hand.

    `source`: the file, which may be absent; None: none is looked for.
    """

    server: ServerSettings = field(default_factory=ServerSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    log: LogSettings = field(default_factory=LogSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    rag: RagSettings = field(default_factory=RagSettings)
    models: tuple[ModelSettings, ...] = ()
    targets: tuple[TargetSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    prices: tuple[PriceSettings, ...] = ()
    source: Path | None = field(default=None, compare=False)

    @classmethod
    def load(cls, file: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read file and environment.

        `file` defaults to PRECEDENT_CONFIG or ./precedent.toml, which may be absent.
        Raises ConfigurationError for unknown sections, fields and variables, and for values of the wrong type.
        """
        path = file or Path(environ.get("PRECEDENT_CONFIG", "precedent.toml"))
        document = read_file(path, required=file is not None or "PRECEDENT_CONFIG" in environ)
        values: dict[str, Any] = {}
        variables = variables_of(environ)
        for section, kind in _sections():
            given = document.pop(section, {})
            values[section] = build(kind, given, f"[{section}]", overrides(section, kind, variables))
        for name, entry in LISTS.items():
            values[name] = build_list(entry, document.pop(name, []), f"[[{name}]]")
        if document:
            raise ConfigurationError(f"{path}: unknown section {sorted(document)[0]!r}")
        if variables:
            raise ConfigurationError(f"unknown environment variable {sorted(variables)[0]}")
        settings = cls(**values, source=path)
        settings.validate()
        return settings

    def validate(self) -> None:
        """Raise ConfigurationError for what types alone do not catch."""
        names = [t.name for t in self.targets]
        if len(set(names)) != len(names) or "" in names:
            raise ConfigurationError("every [[targets]] needs a name of its own")
        for target in self.targets:
            validate_target(target)
        validate_models(self.engine, self.models, self.targets)
        for route in self.routes:
            validate_route(route)
        for price in self.prices:
            validate_price(price)
        validate_limits(self.limits, self.log, self.targets)
        validate_server(self.server, self.storage)
        validate_cache(self.cache)
        validate_identity(self.auth, self.oidc, self.server)
        if not 0 <= self.auth.key_cache_seconds <= 1:
            raise ConfigurationError("[auth] key_cache_seconds must lie between 0 and 1")
        if self.telemetry.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"[telemetry] log_level {self.telemetry.log_level!r} is not a level")
        if not 0 <= self.rag.reuse_noise < 1:
            raise ConfigurationError("[rag] reuse_noise must lie between 0 and 1")
        if self.rag.chunk_characters < 100:
            raise ConfigurationError("[rag] chunk_characters must be at least 100")

    @property
    def directory(self) -> Path:
        return Path(self.storage.directory)

    @property
    def local_models(self) -> dict[str, EngineSettings]:
        """The models of this process' engine by the name of their target; that of [engine] first."""
        if self.server.role == "gateway":
            return {}
        first = {LOCAL: self.engine} if self.engine.model else {}
        found = first | {model.name: model.over(self.engine) for model in self.models}
        return {name: dataclasses.replace(one, model=self._stored(one.model)) for name, one in found.items()}

    def _stored(self, model: str) -> str:
        """A name in the model store as its folder, where no folder is meant."""
        folder = Path(self.storage.models_dir) / model
        return str(folder) if "/" not in model and not Path(model).exists() and folder.is_dir() else model

    @property
    def has_documents(self) -> bool:
        """Whether this process searches and answers; without, neither index nor embedding model is loaded."""
        return bool(self.rag.embedding_model) and self.server.role != "engine"

    def as_role(self, role: str) -> "Settings":
        """These settings for another role. Raises ConfigurationError."""
        changed = dataclasses.replace(self, server=dataclasses.replace(self.server, role=role))
        changed.validate()
        return changed


LISTS: dict[str, type[Any]] = {
    "models": ModelSettings,
    "targets": TargetSettings,
    "routes": RouteSettings,
    "prices": PriceSettings,
}


def entry(kind: str, given: dict[str, Any]) -> Any:
    """One target, route or price from what a file or the API says. Raises ConfigurationError."""
    return build(LISTS[kind], given, f"[[{kind}]]", {})


def documented() -> Iterator[tuple[str, str, str, Any, str]]:
    """(section, field, environment variable or "", default, documentation) of every setting."""
    for section, kind in _sections():
        for f in dataclasses.fields(kind):
            yield section, f.name, variable(section, f.name), f.default, f.metadata["doc"]
    for section, kind in LISTS.items():
        for f in dataclasses.fields(kind):
            yield section, f.name, "", f.default, f.metadata["doc"]


def _sections() -> list[tuple[str, type[Any]]]:
    hints: dict[str, Any] = get_type_hints(Settings)
    return [(name, kind) for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)]


def settings_page() -> str:
    """docs/settings.md: every setting as a table by section."""
    lines = [
        "# Settings",
        "",
        "From `precedent.toml` and the environment; the environment wins. `PRECEDENT_CONFIG` names another file, and",
        "`PRECEDENT_MODEL` is short for `PRECEDENT_ENGINE_MODEL`. The command line's own variables are `PRECEDENT_URL`",
        "(which server) and `PRECEDENT_KEY` (which key). This page is printed by `precedent settings`.",
    ]
    section = ""
    for name, field_name, environment, default, doc in documented():
        if name != section:
            section = name
            heading = f"[[{name}]]" if name in LISTS else f"[{name}]"
            lines += ["", f"## {heading}", "", "| setting | environment | default | meaning |", "|---|---|---|---|"]
        shown = f"`{environment}`" if environment else "—"
        lines.append(f"| `{field_name}` | {shown} | `{default!r}` | {doc} |")
    return "\n".join(lines) + "\n"
