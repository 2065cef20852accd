"""`precedent doctor` names each fault that is injected, and is content without one."""

import dataclasses
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app import migrate
from app.cli import main
from app.config import REPOSITORY, EngineSettings, RagSettings, ServerSettings, Settings, StorageSettings
from app.db import Database, now
from app.errors import ConfigurationError
from app.gateway.models import Credential
from app.operations import machine, servers
from app.operations.doctor import examine
from app.operations.findings import Finding, State, healthy
from app.rag.index.edge import EdgeIndex
from app.tenants.sealing import Sealer, new_key
from tests.conftest import fake_settings, listen
from tests.engine.adapters import write_adapter
from tests.engine.conftest import make_model
from tests.operations.processes import named_by_port
from tests.servers import free_port, qdrant_server, redis_server

NO_DOCUMENTS = RagSettings(embedding_model="")


def plain(directory: Path, **changes: Any) -> Settings:
    """Without an embedding model, whose loading takes seconds, and on a port that is free."""
    defaults = {"rag": NO_DOCUMENTS, "server": ServerSettings(port=free_port())}
    return fake_settings(directory, **{**defaults, **changes})


async def migrated(settings: Settings) -> Settings:
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    return settings


async def findings(settings: Settings, **given: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in await examine(lambda: settings, **given)}


@pytest.mark.slow
async def test_nothing_is_wrong_with_a_served_installation(tmp_path: Path) -> None:
    from app.asgi import create_app

    settings = await migrated(fake_settings(tmp_path, engine=EngineSettings(model=str(REPOSITORY / "demo" / "model"))))
    async with listen(create_app(dataclasses.replace(settings, engine=EngineSettings(model="")))) as url:
        served = dataclasses.replace(settings, server=ServerSettings(port=int(url.rsplit(":", 1)[1])))
        found = await findings(served)
    assert healthy(found.values()), found
    assert {one.state for one in found.values()} == {State.OK}, found
    assert "answers" in found["port"].detail
    assert "running server's" in found["index"].detail
    assert found["model"].detail.endswith("matches SHA256SUMS")


async def test_a_faulty_configuration_is_all_that_is_said() -> None:
    def load() -> Settings:
        raise ConfigurationError("[server] role must be all, gateway or engine, not 'both'")

    [finding] = await examine(load)
    assert (finding.check, finding.state) == ("configuration", State.FAILED)
    assert "'both'" in finding.detail and finding.advice


async def test_a_database_that_is_not_migrated_is_named(tmp_path: Path) -> None:
    absent = (await findings(plain(tmp_path)))["database"]
    assert absent.state == State.FAILED and "precedent migrate" in absent.advice
    assert not (tmp_path / "test.db").exists(), "looking makes nothing"
    (tmp_path / "test.db").touch()
    empty = (await findings(plain(tmp_path)))["database"]
    assert empty.state == State.FAILED and "revision None" in empty.detail


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in its place: root, as whom tests may run, may write to any folder."""
    (tmp_path / "var").write_text("")
    settings = plain(tmp_path, storage=StorageSettings(directory=str(tmp_path / "var")))
    assert (await findings(settings))["storage"].state == State.FAILED
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    finding = machine.storage(open_to_all)
    assert (finding.state, finding.advice) == (State.WARNING, f"Run: chmod o-rwx {open_to_all}")


def test_a_full_disk_is_named_before_it_is_full(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert machine.disk(tmp_path / "not" / "there", low=0, full=0).state == State.OK
    assert machine.disk(tmp_path, low=2 * free, full=0).state == State.WARNING
    assert machine.disk(tmp_path, low=2 * free, full=2 * free).state == State.FAILED


async def test_a_port_of_somebody_else_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        finding = (await findings(plain(tmp_path, server=ServerSettings(port=port))))["port"]
    assert finding.state == State.FAILED and str(port) in finding.detail


async def test_credentials_without_their_key_are_named(tmp_path: Path) -> None:
    settings = await migrated(plain(tmp_path))
    right, wrong = new_key(), new_key()
    assert (await findings(settings))["encryption key"].state == State.OK
    database = Database(settings.storage.database_url)
    async with database.session() as session:
        session.add(Credential(name="openai", sealed=Sealer(right).seal("sk-secret"), updated_at=now()))
        await session.commit()
    await database.close()

    async def with_key(key: str) -> Finding:
        auth = dataclasses.replace(settings.auth, encryption_key=key)
        return (await findings(dataclasses.replace(settings, auth=auth)))["encryption key"]

    assert (await with_key("")).state == State.FAILED
    assert "'openai'" in (await with_key(wrong)).detail
    assert (await with_key(f"{wrong},{right}")).state == State.OK


def test_weights_that_were_changed_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(REPOSITORY / "demo" / "draft", folder)
    engine = EngineSettings(model=str(folder))
    assert machine.model(engine).state == State.OK
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert "does not match" in machine.model(engine).detail
    (folder / "SHA256SUMS").unlink()
    assert machine.model(engine).state == State.WARNING
    assert machine.model(EngineSettings(model=str(tmp_path / "none"))).state == State.FAILED
    assert machine.model(EngineSettings(model="firm/model")).state == State.WARNING
    assert machine.model(EngineSettings(model="firm/model", revision="abc")).state == State.OK


async def test_an_adapter_that_is_damaged_is_named(tmp_path: Path) -> None:
    model = make_model("llama", seed=0)
    model.save_pretrained(tmp_path / "base")
    folder = write_adapter(tmp_path / "firm", model, seed=1)
    engine = EngineSettings(model=str(tmp_path / "base"), adapters=(f"firm={folder}",))
    settings = plain(tmp_path, engine=engine)
    assert (await findings(settings))["adapters"].state == State.OK
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    damaged = (await findings(settings))["adapters"]
    assert damaged.state == State.FAILED and str(folder) in damaged.detail


def test_a_device_and_an_embedding_model_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert machine.device("cuda:97").state == State.FAILED
    assert machine.device("cpu").state == State.OK
    (tmp_path / "empty").mkdir()
    assert machine.embedding_model(str(tmp_path / "empty")).state == State.FAILED


def test_an_embedded_index_of_another_process_or_model_is_named(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path, server=ServerSettings(port=free_port()))
    opened = EdgeIndex(tmp_path / "index", 8, model="other")
    assert "'other'" in servers.index(settings).detail
    matching = dataclasses.replace(settings, rag=RagSettings(embedding_model="other"))
    held = servers.index(matching)
    assert held.state == State.WARNING and str(os.getpid()) in held.detail
    opened.close()
    assert servers.index(matching).state == State.OK
    EdgeIndex(tmp_path / "index", 8, model="other").close()  # looking took nothing away


@pytest.mark.slow
async def test_redis_and_qdrant_that_are_dead_or_hang_are_named(tmp_path: Path) -> None:
    with redis_server() as url:
        assert (await servers.redis_answers("redis", url)).state == State.OK
        with frozen(url):
            assert (await servers.redis_answers("redis", url)).state == State.FAILED
    assert (await servers.redis_answers("redis", url)).state == State.FAILED
    with qdrant_server(api_key="right") as url:
        rag = RagSettings(index="qdrant", qdrant_url=url, qdrant_api_key="right")
        assert servers.index(fake_settings(tmp_path, rag=rag)).state == State.OK
        wrong = dataclasses.replace(rag, qdrant_api_key="wrong")
        assert "401" in servers.index(fake_settings(tmp_path, rag=wrong)).detail
    assert "does not answer" in servers.index(fake_settings(tmp_path, rag=rag)).detail


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """The server at `url` hangs: it takes connections and never answers."""
    pid = named_by_port(url)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
async def test_postgres_that_is_dead_hung_bare_or_in_another_time_is_named(tmp_path: Path, empty_postgres: str) -> None:
    storage = StorageSettings(database_url=empty_postgres, directory=str(tmp_path))
    settings = plain(tmp_path, storage=storage)
    assert "precedent migrate" in (await findings(settings))["database"].advice
    await migrated(settings)
    fine = await findings(settings)
    assert {fine[name].state for name in ("database", "clock", "encryption key")} == {State.OK}, fine
    for ahead, state in ((5, State.WARNING), (-60, State.FAILED)):
        shifted = await findings(settings, clock=lambda ahead=ahead: now() + timedelta(seconds=ahead))
        assert shifted["clock"].state == state
    with frozen(empty_postgres):
        assert "no answer within" in (await findings(settings))["database"].detail
    elsewhere = dataclasses.replace(storage, database_url=f"postgresql+asyncpg://x:secret@127.0.0.1:{free_port()}/x")
    dead = (await findings(dataclasses.replace(settings, storage=elsewhere)))["database"]
    assert dead.state == State.FAILED and "secret" not in dead.detail


def test_the_command_says_it_in_json_and_by_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"RAG_EMBEDDING_MODEL": "", "ENGINE_MODEL": "", "SERVER_PORT": str(free_port())}.items():
        monkeypatch.setenv(f"PRECEDENT_{name}", value)
    bare = CliRunner().invoke(main, ["doctor", "--json"])
    assert bare.exit_code == 1
    assert [one["check"] for one in json.loads(bare.output) if one["state"] == "failed"] == ["database"]
    CliRunner().invoke(main, ["migrate"])
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
