from pathlib import Path

import pytest

from app.config import (
    AuthSettings,
    LimitSettings,
    RagSettings,
    Settings,
    StorageSettings,
    TelemetrySettings,
    documented,
    settings_page,
)
from app.config.shown import SECRET, shown
from app.errors import ConfigurationError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def load(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    file = tmp_path / "precedent.toml"
    file.write_text(text)
    return Settings.load(file, environ)


def test_defaults_when_nothing_is_given(tmp_path: Path) -> None:
    assert load(tmp_path) == Settings()


def test_environment_wins_over_file(tmp_path: Path) -> None:
    settings = load(tmp_path, "[server]\nport = 1\nhost = '::1'", PRECEDENT_SERVER_PORT="2")
    assert (settings.server.port, settings.server.host) == (2, "::1")


def test_model_has_a_short_name(tmp_path: Path) -> None:
    assert load(tmp_path, PRECEDENT_MODEL="Qwen/Qwen3-0.6B").engine.model == "Qwen/Qwen3-0.6B"


def test_targets_and_routes_come_from_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "[[targets]]\nname='a'\nbase_url='http://x/v1'\n[[routes]]\nmodel='m'\ntargets=['a']",
    )
    assert settings.targets[0].base_url == "http://x/v1"
    assert settings.routes[0].targets == ("a",)


@pytest.mark.parametrize(
    ("text", "environ", "says"),
    [
        ("[sevrer]\nport=1", {}, "sevrer"),
        ("[server]\nprot=1", {}, "prot"),
        ("[server]\nport='x'", {}, "port"),
        ("[server]\nhost=3", {}, "host"),
        ("[server\n", {}, "precedent.toml"),
        ("", {"PRECEDENT_SEVRER_PORT": "1"}, "PRECEDENT_SEVRER_PORT"),
        ("[auth]\nkey_cache_seconds=5", {}, "key_cache_seconds"),
        ("[[targets]]\nname='a'\n[[targets]]\nname='a'", {}, "name"),
        ("[[routes]]\nmodel='m'", {}, "target"),
        ("[telemetry]\nlog_level='loud'", {}, "loud"),
    ],
)
def test_bad_configuration_is_named(tmp_path: Path, text: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(tmp_path, text, **environ)


def test_missing_file_is_an_error_only_when_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such"):
        Settings.load(tmp_path / "absent.toml", {})


def test_every_setting_is_documented() -> None:
    assert all(doc.endswith(".") for *_, doc in documented())
    assert DOCS.read_text() == settings_page(), "run: precedent settings > docs/settings.md"


def test_every_setting_is_read_somewhere() -> None:
    """A setting that nothing reads is a lie to the operator."""
    app = Path(__file__).resolve().parents[2] / "app"
    code = "\n".join(path.read_text() for path in app.rglob("*.py") if "config" not in path.parts)
    unread = [f"{section}.{name}" for section, name, *_ in documented() if f".{name}" not in code]
    assert unread == []


def test_settings_are_shown_without_secrets() -> None:
    secret = "s3cr3t"
    settings = Settings(
        storage=StorageSettings(database_url=f"postgresql+asyncpg://precedent:{secret}@db/precedent"),
        auth=AuthSettings(encryption_key=secret),
        telemetry=TelemetrySettings(metrics_token=secret),
        rag=RagSettings(qdrant_api_key=secret),
        limits=LimitSettings(redis_url=f"redis://:{secret}@cache:6379/0"),
    )
    found = {f"{one.section}.{one.name}": one for one in shown(settings)}
    assert secret not in str(found)
    assert found["storage.database_url"].value == "postgresql+asyncpg://…@db/precedent"
    assert found["auth.encryption_key"].value == "…" and found["auth.encryption_key"].changed
    assert found["server.port"].value == "8800" and not found["server.port"].changed


def test_every_setting_that_sounds_secret_is_hidden_or_names_a_variable() -> None:
    sounding = [
        f"{section}.{name}"
        for section, name, _, default, _ in documented()
        if isinstance(default, str) and any(word in name for word in ("key", "token", "secret", "password"))
    ]
    allowed = {"oidc.client_secret_env", "targets.api_key_env"}  # names of variables, no secrets
    hidden = {name for name in sounding if SECRET.search(name)}
    assert hidden and set(sounding) - hidden - allowed == set()


ENGINE = "[engine]\nmodel='one'\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[models]]\nname='a'\nmodel='x'\n[[models]]\nname='a'\nmodel='y'", "name of its own"),
        ("[[models]]\nname='local'\nmodel='x'", "'local' is the model of"),
        ("[[models]]\nmodel='x'", "name of its own"),
        ("[[models]]\nname='a'", "'a' names no folder"),
        ("[[models]]\nname='a'\nmodel='x'\nserved_name='precedent-demo'", "served_name"),
        ("[[models]]\nname='a'\nmodel='x'\n[[targets]]\nname='a'\nbase_url='http://x/v1'", "name of a model"),
        ("[[models]]\nname='a'\nmodel='x'\nquality=6", "'a': quality"),
        ("adapters=['x']", "'local': adapters has 'x', which is not NAME=FOLDER"),
        ("adapters={x='folder'}", "adapters has 'x', which is not NAME=FOLDER"),
        ("adapters=['a:b=folder']", "the name of letters, digits"),
        ("adapters=['a=x', 'a=y']", "'local': every one of its adapters needs a name"),
        ("served_name='m'\nadapters=['a=x']\n[[models]]\nname='m:a'\nmodel='x'", "served_name of its own"),
        ("memory_budget_bytes=-1", "negative"),
        ("memory_budget_bytes=100\nkv_cache_bytes=101", "kv_cache_bytes alone"),
        ("memory_budget_bytes=100\n[[models]]\nname='a'\nmodel='x'\nkv_cache_bytes=101", "'a': its kv_cache_bytes"),
        (
            "device='cuda'\nkv_cache_bytes=9\n[[models]]\nname='a'\nmodel='x'\nkv_cache_bytes=0",
            "'a': a model that shares",
        ),
    ],
)
def test_models_that_make_no_sense_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(tmp_path, ENGINE + text)


def test_a_model_is_as_the_engine_where_it_does_not_say_otherwise(tmp_path: Path) -> None:
    own = "max_num_seqs=3\nkv_cache_bytes=7\nchecksums='sums'\ndraft_model='small'\npinned=true\nadapters=['a=b']\n"
    further = "[[models]]\nname='two'\nmodel='second'\nkv_cache_bytes=9\nmax_draft_tokens=0\n"
    settings = load(tmp_path, ENGINE + own + further)
    one, two = settings.local_models.values()
    assert list(settings.local_models) == ["local", "two"]
    assert (two.model, two.served_name, two.max_num_seqs, two.kv_cache_bytes) == ("second", "two", 3, 9)
    assert (two.checksums, two.draft_model, two.max_draft_tokens, two.pinned) == ("", "", 0, False)
    assert one.draft_model == "small" and one.pinned
    assert (one.adapter_folders, two.adapter_folders) == ({"a": "b"}, {}), "an adapter is of one base model"
    assert settings.as_role("gateway").local_models == {}
