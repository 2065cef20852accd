"""Settings: frozen dataclasses, read once from `precedent.toml` and the environment.

A value comes from the first of: environment variable, file, default. The variable of field `f` in section `s`
is `PRECEDENT_S_F` in capitals; `PRECEDENT_MODEL` is short for `PRECEDENT_ENGINE_MODEL`. Targets and routes are
lists and come from the file alone. Every field carries its documentation, from which `docs/settings.md` is made.
"""

import dataclasses
import os
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from app.errors import ConfigurationError

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent
ALIASES = {"PRECEDENT_MODEL": "PRECEDENT_ENGINE_MODEL"}
# Read by the command line (where is the server, which key), not part of the server's own settings.
CLIENT_VARIABLES = {"PRECEDENT_CONFIG", "PRECEDENT_URL", "PRECEDENT_KEY"}


def setting(default: Any, doc: str) -> Any:
    """A dataclass field with its documentation."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class ServerSettings:
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8800, "Port to listen on.")
    max_body_bytes: int = setting(64 * 2**20, "Largest request body in bytes; more is answered 413.")
    shutdown_seconds: int = setting(20, "How long running requests may finish after a stop signal, in seconds.")


@dataclass(frozen=True)
class StorageSettings:
    database_url: str = setting(
        "sqlite+aiosqlite:///var/precedent.db",
        "SQLAlchemy URL: sqlite+aiosqlite:///PATH or postgresql+asyncpg://HOST/NAME.",
    )
    directory: str = setting("var", "Folder for uploaded originals and the embedded vector index.")


@dataclass(frozen=True)
class TelemetrySettings:
    log_level: str = setting("info", "debug, info, warning or error.")
    log_format: str = setting("console", "console for people, json for machines.")
    otlp_endpoint: str = setting(
        "", "OTLP/HTTP endpoint for traces and metrics, such as http://localhost:4318; empty: none."
    )
    metrics_token: str = setting(
        "",
        "Bearer token for /metrics; empty: /metrics answers callers on this machine alone. Behind a proxy on the same "
        "machine everybody is such a caller: set a token there.",
    )


@dataclass(frozen=True)
class AuthSettings:
    key_cache_seconds: float = setting(
        1.0,
        "How long a looked-up key is remembered, in seconds (at most 1): a revoked key works no longer than this.",
    )


@dataclass(frozen=True)
class EngineSettings:
    model: str = setting(
        "demo/model",
        "Folder or hub name of the model of the in-process engine; empty: no engine in this process.",
    )
    served_name: str = setting("precedent-demo", "Name under which /v1/models shows the in-process model.")
    revision: str = setting("", "Commit or tag of a hub model; empty: its default branch.")
    checksums: str = setting(
        "",
        "File of SHA-256 sums (format of sha256sum) that the model must match, or the engine refuses to start; "
        "empty: SHA256SUMS in the model's folder, where there is one.",
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N; auto is the CPU so far, see docs/gpu.md.")
    dtype: str = setting("auto", "auto, float32 or bfloat16.")
    max_num_seqs: int = setting(64, "Most sequences in one step.")
    max_num_batched_tokens: int = setting(1024, "Token budget of one step.")
    max_model_len: int = setting(0, "Longest prompt plus output in tokens; 0: what the model's config says.")
    kv_cache_bytes: int = setting(
        0, "Memory for the KV cache in bytes; 0: 512 MiB on a CPU, on a GPU what gpu_memory_utilization leaves."
    )
    gpu_memory_utilization: float = setting(0.9, "Share of a GPU's memory for weights, graphs and KV cache together.")
    kernels: str = setting("auto", "auto, reference (plain PyTorch) or triton.")
    fused_kernels: bool = setting(True, "Kill switch of the fused kernels, where Triton is used.")
    shared_prefix_kernel: bool = setting(False, "Read shared prefixes once, where the tuning table says that it pays.")
    cuda_graphs: bool = setting(False, "Replay decode steps from CUDA graphs.")
    overlap: bool = setting(False, "Prepare the next step while the last one runs; needs max_draft_tokens = 0.")
    threads: int = setting(0, "CPU threads of the engine; 0: all cores.")
    max_draft_tokens: int = setting(
        8, "Most tokens guessed ahead of a request (from its own passages and text) and verified in one step; 0: none."
    )
    draft_model: str = setting(
        "", "Folder or hub name of a small model with the same tokenizer that guesses where nothing else does."
    )
    max_queue_seconds: float = setting(
        60.0,
        "A request that the engine has not started by then goes to the next target, or is answered 429; 0: no limit.",
    )

    @property
    def model_source(self) -> str:
        """`model`, found also from outside the checkout when it is a folder that comes with it."""
        shipped = REPOSITORY / self.model
        return str(shipped) if self.model and not Path(self.model).exists() and shipped.is_dir() else self.model


@dataclass(frozen=True)
class RagSettings:
    embedding_model: str = setting(
        "all-MiniLM-L6-v2",
        "The default comes with the installation; any sentence-transformers model by name or folder.",
    )
    chunk_characters: int = setting(500, "Largest chunk in characters.")
    passages: int = setting(5, "Passages given to the model with a question.")
    max_answer_tokens: int = setting(256, "Most tokens of an answer.")
    min_confidence: float = setting(
        0.15, "Below this retrieval confidence (0 to 1) a question is refused without asking the model."
    )
    max_document_bytes: int = setting(32 * 2**20, "Largest document in bytes.")
    ingest_workers: int = setting(1, "Documents ingested at the same time in this process.")


@dataclass(frozen=True)
class TargetSettings:
    name: str = setting("", "Name by which routes refer to the target.")
    provider: str = setting(
        "openai", "local, openai (any compatible server, vLLM too), azure, anthropic, tgi, triton, ollama or fake."
    )
    model: str = setting("", "Model (Azure: deployment) as the upstream knows it; empty: the name the caller used.")
    base_url: str = setting("", "Base URL of the upstream; for openai it ends in /v1.")
    allow_private: bool = setting(
        False, "Whether base_url may be plain http and may lead to loopback, private or other special addresses."
    )
    api_key_env: str = setting("", "Environment variable that holds the upstream's key.")
    api_version: str = setting(
        "", "Of Azure: api-version of the deployments path; empty: the /openai/v1 path, which needs none."
    )
    cache_salt_env: str = setting(
        "", "Of vLLM: variable with the secret from which each tenant's cache_salt is derived; empty: none is sent."
    )
    extra_fields: tuple[str, ...] = setting(
        (), "Of openai: fields beyond OpenAI's own that the upstream takes, such as top_k, min_p."
    )
    images: bool = setting(False, "Whether the model takes images; requests with images go nowhere else.")
    tools: bool = setting(True, "Whether the model takes tools, where its provider can pass them on.")
    max_context: int = setting(
        0, "Tokens of prompt and answer together; a request estimated to be longer skips the target. 0: unknown."
    )
    connect_seconds: float = setting(5.0, "Longest wait for a connection, in seconds.")
    timeout_seconds: float = setting(60.0, "Longest wait for the first delta, in seconds.")
    idle_seconds: float = setting(0.0, "Longest silence between two deltas, in seconds; 0: as timeout_seconds.")
    total_seconds: float = setting(600.0, "Longest time for a whole answer including retries, in seconds.")
    max_retries: int = setting(1, "How often a transient failure is tried again before the next target's turn.")
    breaker_failures: int = setting(5, "Failures in a row after which the target is left alone for a while.")
    breaker_seconds: float = setting(10.0, "How long that is, in seconds; then one request probes it.")
    options: str = setting("", "Of the fake provider: comma-separated status=503, delay_ms=50, after=3, text=hello.")


@dataclass(frozen=True)
class RouteSettings:
    model: str = setting("", "Model name as callers use it.")
    targets: tuple[str, ...] = setting((), "Targets in the order in which they are tried.")
    owned_by: str = setting("precedent", "Shown by /v1/models.")


@dataclass(frozen=True)
class Settings:
    """Everything the process was configured with. Built by `Settings.load()` alone, or in tests by hand."""

    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    engine: EngineSettings = EngineSettings()
    rag: RagSettings = RagSettings()
    targets: tuple[TargetSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()

    @classmethod
    def load(cls, file: Path | None = None, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read file and environment.

        `file` defaults to PRECEDENT_CONFIG or ./precedent.toml, which may be absent.
        Raises ConfigurationError for unknown sections, fields and variables, and for values of the wrong type.
        """
        path = file or Path(environ.get("PRECEDENT_CONFIG", "precedent.toml"))
        document = _read(path, required=file is not None or "PRECEDENT_CONFIG" in environ)
        values: dict[str, Any] = {}
        variables = _variables(environ)
        for section, kind in _sections():
            given = document.pop(section, {})
            values[section] = _build(kind, given, f"[{section}]", _overrides(section, kind, variables))
        values["targets"] = _list(TargetSettings, document.pop("targets", []), "[[targets]]")
        values["routes"] = _list(RouteSettings, document.pop("routes", []), "[[routes]]")
        if document:
            raise ConfigurationError(f"{path}: unknown section {sorted(document)[0]!r}")
        if variables:
            raise ConfigurationError(f"unknown environment variable {sorted(variables)[0]}")
        settings = cls(**values)
        settings.validate()
        return settings

    def validate(self) -> None:
        """Raise ConfigurationError for what types alone do not catch."""
        names = [t.name for t in self.targets]
        if len(set(names)) != len(names) or "" in names:
            raise ConfigurationError("every [[targets]] needs a name of its own")
        for target in self.targets:
            _validate_target(target)
        for route in self.routes:
            if not route.model or not route.targets:
                raise ConfigurationError("every [[routes]] needs a model and at least one target")
        if not 0 <= self.auth.key_cache_seconds <= 1:
            raise ConfigurationError("[auth] key_cache_seconds must lie between 0 and 1")
        if self.telemetry.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"[telemetry] log_level {self.telemetry.log_level!r} is not a level")
        if self.rag.chunk_characters < 100:
            raise ConfigurationError("[rag] chunk_characters must be at least 100")

    @property
    def directory(self) -> Path:
        return Path(self.storage.directory)


def _validate_target(target: TargetSettings) -> None:
    for name in ("connect_seconds", "timeout_seconds", "total_seconds", "breaker_seconds"):
        if getattr(target, name) <= 0:
            raise ConfigurationError(f"target {target.name!r}: {name} must be above 0")
    for name in ("idle_seconds", "max_context", "max_retries"):
        if getattr(target, name) < 0:
            raise ConfigurationError(f"target {target.name!r}: {name} must not be negative")
    if target.breaker_failures < 1:
        raise ConfigurationError(f"target {target.name!r}: breaker_failures must be at least 1")


def documented() -> Iterator[tuple[str, str, str, Any, str]]:
    """(section, field, environment variable or "", default, documentation) of every setting."""
    for section, kind in _sections():
        for f in dataclasses.fields(kind):
            yield section, f.name, _variable(section, f.name), f.default, f.metadata["doc"]
    for section, kind in (("targets", TargetSettings), ("routes", RouteSettings)):
        for f in dataclasses.fields(kind):
            yield section, f.name, "", f.default, f.metadata["doc"]


def _sections() -> list[tuple[str, type[Any]]]:
    hints: dict[str, Any] = get_type_hints(Settings)
    return [(name, kind) for name, kind in hints.items() if isinstance(kind, type)]


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise ConfigurationError(f"{path}: no such configuration file")
        return {}
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _variable(section: str, name: str) -> str:
    return f"PRECEDENT_{section}_{name}".upper()


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        ALIASES.get(k, k): v for k, v in environ.items() if k.startswith("PRECEDENT_") and k not in CLIENT_VARIABLES
    }


def _overrides(section: str, kind: type[Any], variables: dict[str, str]) -> dict[str, str]:
    names = [f.name for f in dataclasses.fields(kind)]
    return {n: variables.pop(v) for n in names if (v := _variable(section, n)) in variables}


def _list(kind: type[T], entries: list[dict[str, Any]], where: str) -> tuple[T, ...]:
    return tuple(_build(kind, entry, where, {}) for entry in entries)


def _build(kind: type[T], given: dict[str, Any], where: str, overrides: dict[str, str]) -> T:
    hints = get_type_hints(kind)
    unknown = set(given) - set(hints)
    if unknown:
        raise ConfigurationError(f"{where}: unknown setting {sorted(unknown)[0]!r}")
    merged: dict[str, Any] = {**given, **overrides}
    return kind(**{name: _convert(value, hints[name], f"{where} {name}") for name, value in merged.items()})


def _convert(value: Any, kind: Any, where: str) -> Any:
    """A TOML value or an environment string as the declared type."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(str(item).strip() for item in items)
    if kind is bool:
        return _boolean(value, where)
    if (kind is str and not isinstance(value, str)) or isinstance(value, bool):
        raise ConfigurationError(f"{where}: expected {kind.__name__}, got {value!r}")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{where}: expected {kind.__name__}, got {value!r}") from None


def _boolean(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off"):
        return False
    raise ConfigurationError(f"{where}: expected true or false, got {value!r}")


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
    for name, field_name, variable, default, doc in documented():
        if name != section:
            section = name
            heading = f"[[{name}]]" if name in ("targets", "routes") else f"[{name}]"
            lines += ["", f"## {heading}", "", "| setting | environment | default | meaning |", "|---|---|---|---|"]
        shown = f"`{variable}`" if variable else "—"
        lines.append(f"| `{field_name}` | {shown} | `{default!r}` | {doc} |")
    return "\n".join(lines) + "\n"
