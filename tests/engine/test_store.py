"""The model store: what is taken in, what is written down of it, and that nothing changes unnoticed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.config import REPOSITORY, Settings
from app.engine import AsyncEngine, EngineConfig
from app.engine.architecture import read_spec
from app.engine.checksums import sha256
from app.engine.runner import ModelRunner
from app.engine.store import Store, StoreError, num_parameters
from tests.engine.conftest import FAMILIES, make_model

DEMO = REPOSITORY / "demo" / "model"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


ADDING = """
import os, sys
from pathlib import Path
from app.engine.store import Store
Path.rename = lambda *_: os.kill(os.getpid(), 9)
Store(Path(sys.argv[1])).add(sys.argv[2], name="demo")
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_manifest_counts_the_parameters_of_every_family(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path)
    assert num_parameters(read_spec(tmp_path)) == model.num_parameters()


def test_a_folder_is_copied_and_described(store: Store) -> None:
    made = store.add(str(DEMO), name="demo")
    assert (made.family, made.quantization, made.pinned, made.revision) == ("qwen3", "none", False, "")
    assert made.source == str(DEMO) and made.files["model.safetensors"].sha256 == sha256(DEMO / "model.safetensors")
    assert [one.name for one in store] == ["demo"] and store.manifest("demo") == made
    assert "training_hashes.bin" not in made.files and "README.md" in made.files
    assert store.verify("demo") == [] and not list(store.folder.glob(".adding*"))
    copy = store.folder / "demo" / "model.safetensors"
    assert copy.stat().st_ino != (DEMO / "model.safetensors").stat().st_ino, "a change there is none here"
    ModelRunner(EngineConfig(store.folder / "demo", num_blocks=8))
    with pytest.raises(StoreError, match="already"):
        store.add(str(DEMO), name="demo")


def test_verify_names_everything_that_is_not_as_it_was(store: Store) -> None:
    store.add(str(DEMO), name="demo")
    folder = store.folder / "demo"
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    (folder / "generation_config.json").unlink()
    (folder / "more.safetensors").write_bytes(b"")
    assert store.verify("demo") == [
        "demo: generation_config.json is missing",
        "demo: model.safetensors differs from its SHA-256",
        "demo: more.safetensors is not in the manifest",
    ]
    with pytest.raises(StoreError, match=r"Not pinned.*model\.safetensors differs"):
        store.pin("demo")


def test_the_engine_refuses_a_pinned_model_that_has_changed(store: Store) -> None:
    store.add(str(DEMO), name="demo")
    config = store.folder / "demo" / "config.json"
    config.write_text(config.read_text() + " ")
    ModelRunner(EngineConfig(store.folder / "demo", num_blocks=8))
    config.write_text(config.read_text().rstrip(" "))
    assert store.pin("demo").pinned and store.verify("demo") == []
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match=r"config\.json does not match its SHA-256"):
        ModelRunner(EngineConfig(store.folder / "demo", num_blocks=8))


def test_what_is_no_model_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    gpt = tmp_path / "gpt"
    gpt.mkdir()
    (gpt / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for source, name, says in (
        (str(gpt), "", "'gpt2' is not supported"),
        (str(tmp_path / "nowhere"), "", "neither an existing folder nor a hub id"),
        ("typo", "", "nor stored under that name"),
        (str(DEMO / "config.json"), "x", "not a folder"),
        (str(DEMO), "../x", "no name for a model"),
        (str(DEMO), ".x", "no name for a model"),
        (str(DEMO), "x.json", "no name for a model"),
    ):
        with pytest.raises(StoreError, match=says):
            store.add(source, name=name)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    (damaged / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"config\.json does not match"):
        store.add(str(damaged))
    assert [path.name for path in store.folder.iterdir()] == [".lock"]
    with pytest.raises(StoreError, match="no model 'gone'"):
        store.verify("gone")


def test_an_add_that_was_killed_leaves_no_model_and_nothing_for_long(store: Store) -> None:
    """Killed at the last moment: everything is copied and written down."""
    killed = subprocess.run([sys.executable, "-c", ADDING, store.folder, DEMO], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in store.folder.iterdir()) == [".adding-demo", ".lock", "demo.json"]
    assert list(store) == []
    with pytest.raises(StoreError, match="no model 'demo'"):
        store.verify("demo")
    store.add(str(DEMO), name="demo")
    assert store.verify("demo") == []
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "demo", "demo.json"]


def test_two_processes_do_not_add_at_once(store: Store) -> None:
    with store._alone(), pytest.raises(StoreError, match="Another process"):
        Store(store.folder).add(str(DEMO), name="demo")
    store.add(str(DEMO), name="demo")


def test_what_is_removed_is_gone_and_nothing_beyond_the_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1234")
    added = store.add(str(DEMO), name="demo")
    (store.folder / "demo" / "inside").symlink_to(outside)
    (store.folder / "demo" / "shared").hardlink_to(outside / "precious")
    assert store.remove("demo") == added.num_bytes, "what others link is not free"
    (store.folder / "linked").symlink_to(outside)
    assert store.remove("linked") == 0
    for name in ("demo", "linked"):
        with pytest.raises(StoreError, match=f"no model '{name}'"):
            store.remove(name)
    with pytest.raises(StoreError, match="no name for a model"):
        store.remove("../outside")
    assert (outside / "precious").read_bytes() == b"1234"
    assert [path.name for path in store.folder.iterdir()] == [".lock"]


def test_a_hub_model_is_linked_at_its_commit(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache as its client lays it out, read without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--firm--tiny"
    snapshot = cached / "snapshots" / commit
    make_model("llama").save_pretrained(snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    made = store.add("firm/tiny")
    assert (made.name, made.source, made.revision) == ("tiny", "firm/tiny", commit)
    assert (store.folder / "tiny" / "model.safetensors").stat().st_ino == (snapshot / "model.safetensors").stat().st_ino
    with pytest.raises(StoreError, match=r"'firm/none' could not be fetched from the hub: .*connect"):
        store.add("firm/none")


def test_the_command_line_and_the_settings_know_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("precedent.toml").write_text(
        '[engine]\nmodel = "demo"\n[[models]]\nname = "second"\nmodel = "draft"\n'
        '[[models]]\nname = "third"\nmodel = "demo"\ndraft_model = "var/models/draft"\n'
    )

    def run(*words: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(main, ["model", *words])
        assert (result.exit_code != 0) == fails, result.output
        return result

    run("add", str(DEMO), "--name", "demo")
    run("add", str(REPOSITORY / "demo" / "draft"))
    run("pin", "demo")
    assert "2 verified" in run("verify").output
    stored = json.loads(run("list", "--json").output)["stored"]
    assert [(one["name"], one["used_by"], one["pinned"]) for one in stored] == [
        ("demo", ["local", "third"], True),
        ("draft", ["second", "third"], False),
    ]
    assert "local, third" in run("list").output
    assert "not pinned" in run("list").output
    model = Settings.load().local_models["second"].model
    assert model == "var/models/draft" and AsyncEngine(EngineConfig(model)).config.model == model
    (tmp_path / "var" / "models" / "draft" / "config.json").unlink()
    assert "draft: config.json is missing" in run("verify", "draft", fails=True).output
    assert "no model 'other'" in run("pin", "other", fails=True).output
    assert "second, third" in run("remove", "draft", fails=True).output
    assert "MiB are free" in run("remove", "draft", "--force").output
    assert not (tmp_path / "var" / "models" / "draft").exists()
