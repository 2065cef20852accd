"""Weights pinned by revision and checksum: a mismatch refuses to start and names the file."""

import shutil
from pathlib import Path

import pytest

from app.config import REPOSITORY
from app.engine import EngineConfig, checksums
from app.engine.checksums import read_sums, sha256, verify, verify_folder, write_sums
from app.engine.runner import ModelRunner

DEMO = REPOSITORY / "demo" / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(DEMO, copy)
    write_sums(copy, copy / "SHA256SUMS")
    return copy


def start(folder: Path, **settings: object) -> ModelRunner:
    return ModelRunner(EngineConfig(folder, num_blocks=16, **settings))  # type: ignore[arg-type]


def test_the_sums_are_those_of_sha256sum(folder: Path) -> None:
    sums = read_sums(folder / "SHA256SUMS")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(sums)
    verify(folder, folder / "SHA256SUMS")
    start(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_changed_byte_refuses_to_start(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[-1] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name} does not match its SHA-256"):
        start(folder)


def test_a_missing_or_an_extra_file_refuses_to_start(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more\.safetensors is not listed"):
        start(folder)
    (folder / "more.safetensors").unlink()
    (folder / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"generation_config\.json is missing"):
        start(folder)


def test_a_list_elsewhere_overrules_the_folders_own(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "pinned.txt"
    elsewhere.write_text("# reviewed 2026-11-20\n" + f"{'0' * 64}  model.safetensors\n")
    with pytest.raises(ValueError, match=r"model\.safetensors does not match"):
        start(folder, checksums=elsewhere)
    elsewhere.write_text("not a sum\n")
    with pytest.raises(ValueError, match="line 1"):
        start(folder, checksums=elsewhere)
    with pytest.raises(ValueError, match="does not exist"):
        start(folder, checksums=tmp_path / "nowhere")


def test_a_revision_needs_a_hub_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision 'main' is of a hub model"):
        start(folder, revision="main")


def test_a_file_is_read_again_only_after_it_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has just changed is read every time; here even that counts as settled."""
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", -1.0)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", counted)
    verify_folder(folder)
    assert set(read) == set(read_sums(folder / "SHA256SUMS"))
    read.clear()
    verify_folder(folder)
    assert read == []
    config = folder / "config.json"
    config.write_bytes(config.read_bytes()[:-1] + b" ")
    with pytest.raises(ValueError, match=r"config\.json does not match"):
        verify_folder(folder)
    assert read == ["config.json"]
