"""The sections of the settings, each field with its default and its documentation."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def setting(default: Any, doc: str) -> Any:
    """A dataclass field with its documentation."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class ServerSettings:
    role: str = setting(
        "all", "all, gateway (everything but the engine) or engine (the engine alone, for gateways elsewhere)."
    )
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8800, "Port to listen on.")
    max_body_bytes: int = setting(64 * 2**20, "Largest request body in bytes; more is answered 413.")
    public_url: str = setting(
        "", "Where browsers find this server, https://…: for single sign-on, and cookies are then for https alone."
    )
    shutdown_seconds: int = setting(20, "How long running requests may finish after a stop signal, in seconds.")


@dataclass(frozen=True)
class StorageSettings:
    database_url: str = setting(
        "sqlite+aiosqlite:///var/precedent.db",
        "SQLAlchemy URL: sqlite+aiosqlite:///PATH or postgresql+asyncpg://HOST/NAME.",
    )
    database_seconds: float = setting(
        10.0,
        "Longest wait for PostgreSQL to connect or to answer a statement; whoever waits longer gets a 503. Migrations, "
        "backups and commands wait as long as it takes.",
    )
    directory: str = setting("var", "Folder for uploaded originals and the embedded vector index.")
    models_dir: str = setting("var/models", "Folder of the model store, see `precedent model` and docs/models.md.")


@dataclass(frozen=True)
class TelemetrySettings:
    log_level: str = setting("info", "debug, info, warning or error.")
    log_format: str = setting("console", "console for people, json for machines.")
    otlp_endpoint: str = setting(
        "", "OTLP/HTTP endpoint for traces and metrics, such as http://localhost:4318; empty: none."
    )
    slo_ttft_ms: float = setting(2000.0, "Within which a first token is good, in milliseconds; for precedent.slo.")
    slo_per_token_ms: float = setting(100.0, "Within which each further token is good, on average, in milliseconds.")
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
    session_hours: float = setting(12.0, "How long a login in the console lasts, in hours.")
    login_attempts: int = setting(10, "Failed logins in five minutes, by account and by address, before a pause.")
    encryption_key: str = setting(
        "",
        "Encrypts stored provider credentials and logins under way: `precedent secret-key` makes one. Several with "
        "commas: the first encrypts, all decrypt. Belongs into the environment.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Addresses or networks of proxies whose X-Forwarded-For is believed; for the address ranges of keys."
    )


@dataclass(frozen=True)
class OidcSettings:
    issuer: str = setting("", "Issuer of the OpenID provider, https://…; empty: no single sign-on.")
    client_id: str = setting("", "This application's name there.")
    client_secret_env: str = setting("", "Environment variable with its secret; empty: a public client.")
    tenant: str = setting("", "Tenant that people who log in through the provider belong to.")
    default_role: str = setting("member", "Role of people who log in for the first time.")
    create_users: bool = setting(False, "Whether somebody unknown is let in with that role, or turned away.")


@dataclass(frozen=True)
class LimitSettings:
    redis_url: str = setting(
        "", "redis://… through which replicas share limits and budgets; empty: counted in this process alone."
    )
    requests_per_minute: int = setting(0, "For keys without a limit of their own; 0: none.")
    tokens_per_minute: int = setting(0, "For keys without a limit of their own, prompt and answer; 0: none.")
    concurrency: int = setting(0, "Requests at once, for keys without a limit of their own; 0: none.")
    assumed_output_tokens: int = setting(
        1024, "Output reserved for a request that names no limit; what it takes beyond may exceed a budget."
    )
    overload_seconds: float = setting(
        120.0,
        "Above this predicted time to the first token (nine of ten stay below it) an engine is overloaded, in seconds: "
        "requests go elsewhere where they may, else 429 says when to come back; 0: never. People want less.",
    )
    lease_seconds: int = setting(
        1800, "After so long, in seconds, what a replica that died had reserved is given back; longer than any request."
    )


@dataclass(frozen=True)
class CacheSettings:
    max_bytes: int = setting(64 * 2**20, "Memory for kept answers, on routes with cache_seconds.")
    semantic_seconds: int = setting(
        0, "How long checked answers about documents are kept for like questions, in seconds; 0: never."
    )
    semantic_threshold: float = setting(
        0.9, "How alike two questions must be (cosine) before a partition has learned its own threshold."
    )
    semantic_max_error: float = setting(0.01, "Share of wrong answers that the learned threshold stays below.")
    semantic_audit: float = setting(0.05, "Share of hits that the model answers anew, to learn from.")
    semantic_entries: int = setting(500, "Answers kept for one partition; the oldest go first.")


@dataclass(frozen=True)
class LogSettings:
    flush_seconds: float = setting(
        0.2, "How long spend and request log may wait in memory, in seconds: what kill -9 can lose."
    )
    retention_days: int = setting(90, "How long the request log is kept, in days; the ledger is kept for good.")
    max_pending: int = setting(
        20_000, "Rows that may wait while the database is away; beyond this new requests are answered 503."
    )


@dataclass(frozen=True)
class EngineSettings:
    model: str = setting(
        "demo/model",
        "Folder or hub name of the model of the in-process engine; empty: no engine in this process.",
    )
    served_name: str = setting("precedent-demo", "Name under which /v1/models shows the in-process model.")
    region: str = setting("", "Where this machine stands, such as eu, for tenants that are bound to regions.")
    quality: int = setting(3, "What the model is good for, 1 to 5; see quality of [[targets]].")
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
        0,
        "Memory for the KV cache in bytes, of each of the engine's processes; 0: 512 MiB on a CPU, on a GPU what "
        "gpu_memory_utilization leaves.",
    )
    kv_cache_dtype: str = setting(
        "auto", "auto (that of the model) or fp8: keys and values in 8 bits, twice as many of them in the same memory."
    )
    gpu_memory_utilization: float = setting(0.9, "Share of a GPU's memory for weights, graphs and KV cache together.")
    kernels: str = setting("auto", "auto, reference (plain PyTorch) or triton.")
    fused_kernels: bool = setting(True, "Kill switch of the fused kernels, where Triton is used.")
    shared_prefix_kernel: bool = setting(False, "Read shared prefixes once, where the tuning table says that it pays.")
    cuda_graphs: bool = setting(False, "Replay decode steps from CUDA graphs.")
    overlap: bool = setting(False, "Prepare the next step while the last one runs; needs max_draft_tokens = 0.")
    threads: int = setting(
        0, "CPU threads of the engine, of each process where it has several; 0: all cores, shared among them."
    )
    max_draft_tokens: int = setting(
        8, "Most tokens guessed ahead of a request (from its own passages and text) and verified in one step; 0: none."
    )
    draft_model: str = setting(
        "", "Folder or hub name of a small model with the same tokenizer that guesses where nothing else does."
    )
    tensor_parallel_size: int = setting(
        1, "Processes of this machine that share every layer, on GPUs one device each; see docs/parallel.md."
    )
    pipeline_parallel_size: int = setting(
        1, "Stages that the model's layers are split into, each with processes of its own; see docs/parallel.md."
    )
    adapters: tuple[str, ...] = setting(
        (),
        "LoRA adapters of the model, each NAME=FOLDER (PEFT's format), served as the model SERVED_NAME:NAME; see "
        "docs/models.md.",
    )
    max_queue_seconds: float = setting(
        60.0,
        "A request that the engine has not started by then, or whose model has not woken, goes to the next target, or "
        "is answered 429; 0: no limit.",
    )
    pinned: bool = setting(False, "Whether the model is never put to sleep for others.")
    memory_budget_bytes: int = setting(
        0,
        "Bytes that models may take on each device together: weights and KV caches of all in-process models, embedding "
        "and rerank model; models sleep and wake to keep it, see docs/models.md. 0: unlimited.",
    )

    @property
    def adapter_folders(self) -> dict[str, str]:
        """By the adapter's name."""
        return {name: folder for name, _, folder in (entry.partition("=") for entry in self.adapters)}

    @property
    def adapter_models(self) -> dict[str, str]:
        """The adapter's name by that of the model that it is served as."""
        return {f"{self.served_name}:{name}": name for name in self.adapter_folders}

    @property
    def model_source(self) -> str:
        """`model`, found also from outside the checkout when it is a folder that comes with it."""
        shipped = REPOSITORY / self.model
        return str(shipped) if self.model and not Path(self.model).exists() and shipped.is_dir() else self.model


@dataclass(frozen=True)
class ModelSettings:
    """A further model of the in-process engine. What it does not say of itself is as in [engine]."""

    name: str = setting("", "Name of its target, for routes.")
    model: str = setting("", "Folder, hub name or name in the model store.")
    served_name: str = setting("", "Name under which /v1/models shows it; empty: as name.")
    revision: str = setting("", "Commit or tag of a hub model; empty: its default branch.")
    checksums: str = setting("", "File of SHA-256 sums that it must match; empty: SHA256SUMS in its folder, if any.")
    pinned: bool = setting(False, "Whether it is never put to sleep for others.")
    adapters: tuple[str, ...] = setting((), "Its own LoRA adapters, each NAME=FOLDER; see those of [engine].")
    quality: int | None = setting(None, "What it is good for, 1 to 5. This and what follows: as in [engine] if absent.")
    device: str | None = setting(None, "Device that it runs on.")
    dtype: str | None = setting(None, "auto, float32 or bfloat16.")
    threads: int | None = setting(None, "CPU threads; 0: all cores.")
    max_num_seqs: int | None = setting(None, "Most sequences in one step.")
    max_num_batched_tokens: int | None = setting(None, "Token budget of one step.")
    max_model_len: int | None = setting(None, "Longest prompt plus output in tokens.")
    kv_cache_bytes: int | None = setting(None, "Memory for its KV cache in bytes.")
    kv_cache_dtype: str | None = setting(None, "auto or fp8.")
    max_draft_tokens: int | None = setting(None, "Most tokens guessed ahead of a request.")
    draft_model: str | None = setting(None, "Small model that guesses; the one of [engine] is not taken over.")
    max_queue_seconds: float | None = setting(None, "Longest wait until it is awake and has begun with a request.")

    def over(self, engine: EngineSettings) -> EngineSettings:
        """[engine] with what this model says of itself."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        said = {name: value for name, value in own.items() if value is not None}
        return replace(engine, **{"draft_model": "", **said, "served_name": self.served_name or self.name})


@dataclass(frozen=True)
class RagSettings:
    embedding_model: str = setting(
        "all-MiniLM-L6-v2",
        "The default comes with the installation; any sentence-transformers model by name or folder.",
    )
    chunk_characters: int = setting(500, "Largest chunk in characters.")
    passages: int = setting(5, "Passages given to the model with a question.")
    min_passages: int = setting(
        2,
        "Passages at least, where the engine is so busy that it is given fewer (from half of limits.overload_seconds).",
    )
    reuse_noise: float = setting(
        0.0,
        "Share by which a passage may score less and yet come first in the prompt, where its keys and values are in "
        "memory already; 0: strictly by score.",
    )
    max_answer_tokens: int = setting(256, "Most tokens of an answer.")
    min_confidence: float = setting(
        0.15, "Below this retrieval confidence (0 to 1) a question is refused without asking the model."
    )
    max_document_bytes: int = setting(32 * 2**20, "Largest document in bytes.")
    ingest_workers: int = setting(
        2, "Documents ingested at the same time in this process; 0: leave all to `precedent worker`."
    )
    jobs_redis_url: str = setting(
        "",
        "redis://… through which processes that share the database tell each other of new ingestion jobs, for "
        "`precedent worker` on more machines; empty: this process alone runs its jobs.",
    )
    reranker: str = setting(
        "", "Folder or hub name of a cross-encoder that orders the best passages anew; empty: none."
    )
    reranker_ms: float = setting(
        200.0, "Most time for that, in milliseconds; what it has not read by then keeps its place."
    )
    index: str = setting(
        "edge", "Vector index: edge (inside this process) or qdrant (a server, for replicas and workers)."
    )
    qdrant_url: str = setting("", "Of qdrant: http://… or https://… of the server.")
    qdrant_api_key: str = setting("", "Of qdrant: its API key. Belongs into the environment.")
    qdrant_timeout_seconds: float = setting(10.0, "Of qdrant: longest wait for one call, in seconds.")


@dataclass(frozen=True)
class TargetSettings:
    name: str = setting("", "Name by which routes refer to the target.")
    provider: str = setting(
        "openai",
        "local, precedent (an engine replica), openai (any compatible server, vLLM too), azure, anthropic, tgi, "
        "triton, ollama or fake.",
    )
    model: str = setting("", "Model (Azure: deployment) as the upstream knows it; empty: the name the caller used.")
    base_url: str = setting("", "Base URL of the upstream; for openai it ends in /v1.")
    allow_private: bool = setting(
        False, "Whether base_url may be plain http and may lead to loopback, private or other special addresses."
    )
    credential: str = setting("", "Name of the upstream's key as stored, encrypted, through /api/v1/credentials.")
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
    region: str = setting("", "Where it computes, such as eu; a tenant bound to regions goes to no target without one.")
    privileged: bool = setting(False, "Whether material under legal privilege may be sent there.")
    quality: int = setting(3, "What the model is good for, 1 (simple lookups) to 5 (the hardest drafting); for hybrid.")
    probe_seconds: float = setting(
        0.0, "How often the upstream is asked whether it is well, in seconds, so that trouble shows early; 0: never."
    )
    options: str = setting(
        "", "Of the fake provider: comma-separated status=503, delay_ms=50, after=3, queue_ms=900, text=hello."
    )


@dataclass(frozen=True)
class RouteSettings:
    model: str = setting("", "Model name as callers use it.")
    targets: tuple[str, ...] = setting((), "Targets, in the order in which `order` tries them.")
    strategy: str = setting("order", "order, weight, latency, cost, load, affinity or hybrid; see docs/gateway.md.")
    cache_seconds: int = setting(
        0, "How long answers to deterministic requests (temperature 0) are kept and given again, in seconds; 0: never."
    )
    weights: tuple[int, ...] = setting((), "Of weight, load and affinity: the targets' shares, in their order.")
    owned_by: str = setting("precedent", "Shown by /v1/models.")


@dataclass(frozen=True)
class PriceSettings:
    target: str = setting("", "Target whose use costs this; `embedding` is the embedding model.")
    model: str = setting("", "Model name as callers use it; empty: every model of the target.")
    input: int = setting(0, "Micro-dollars for a million prompt tokens: 2500000 is $2.50.")
    cached_input: int = setting(-1, "Micro-dollars for a million prompt tokens from a cache; -1: as input.")
    output: int = setting(0, "Micro-dollars for a million tokens of answers.")
    second: int = setting(0, "Micro-dollars for a second of the target's computing, as for a GPU of one's own.")
