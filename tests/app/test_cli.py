"""The `precedent` command on a database of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.cli.base import files_in


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CliRunner]:
    monkeypatch.chdir(tmp_path)
    for name in ("PRECEDENT_URL", "PRECEDENT_KEY", "PRECEDENT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    yield CliRunner()


def invoke(run: CliRunner, *words: str) -> Result:
    return run.invoke(main, list(words))


def test_a_tenant_and_its_keys(run: CliRunner) -> None:
    assert "migrate" in invoke(run, "tenant", "create", "acme").output
    assert "migrate" in invoke(run, "serve").output
    assert invoke(run, "migrate").exit_code == 0
    assert invoke(run, "tenant", "create", "acme").exit_code == 0
    again = invoke(run, "tenant", "create", "acme")
    assert (again.exit_code, "exists already" in again.output) == (1, True)
    assert "acme" in invoke(run, "tenant", "list").output
    secret = invoke(run, "key", "create", "acme", "first", "--scopes", "chat,answers", "--labels", "m1")
    assert secret.output.startswith("prc_")
    listed = invoke(run, "key", "list", "acme").output
    assert "first" in listed
    assert secret.output.strip() not in listed
    assert "no scope" in invoke(run, "key", "create", "acme", "x", "--scopes", "fly").output
    assert "no tenant" in invoke(run, "key", "list", "nobody").output


def test_ask_without_a_server_or_key_says_so(run: CliRunner) -> None:
    assert "No API key" in invoke(run, "ask", "Why?").output
    result = run.invoke(main, ["ask", "Why?"], env={"PRECEDENT_KEY": "prc_x", "PRECEDENT_URL": "http://127.0.0.1:9"})
    assert result.exit_code == 1
    assert "does not answer" in result.output


def test_a_bad_setting_is_one_line(run: CliRunner) -> None:
    Path("precedent.toml").write_text("[server]\nprot = 1\n")
    result = invoke(run, "tenant", "list")
    assert (result.exit_code, result.output) == (1, "Error: [server]: unknown setting 'prot'\n")


def test_files_in_folders_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [path.name for path in files_in((tmp_path,))] == ["a.txt", "b.txt", "c.txt"]
