"""What docs/operations.md, security.md and scaling.md name exists: tests, commands, files."""

import re
from collections.abc import Iterator

import pytest

from app.cli import main
from app.config import REPOSITORY

PAGES = ("operations.md", "security.md", "scaling.md")
NAMED = re.compile(r"`([\w/]*\.py)?::(\w+)`")


def text(page: str) -> str:
    return (REPOSITORY / "docs" / page).read_text()


def named_tests(page: str) -> Iterator[tuple[str, str]]:
    """(file, test); a name without a file is of the file before."""
    file = ""
    for found in NAMED.finditer(text(page)):
        file = found[1] or file
        yield file, found[2]


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str) -> None:
    missing = [
        f"{file}::{test}"
        for file, test in named_tests(page)
        if f"def {test}(" not in (REPOSITORY / "tests" / file).read_text()
    ]
    assert missing == []


def test_every_threat_and_every_fault_has_a_test() -> None:
    for page, least in (("operations.md", 10), ("security.md", 25)):
        rows = [line for line in text(page).splitlines() if line.startswith("| ") and not line.startswith("| threat")]
        rows = [line for line in rows if not line.startswith("| fault")]
        assert len(rows) >= least
        assert [row for row in rows if not NAMED.search(row)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_that_are_named_exist(page: str) -> None:
    for command in re.findall(r"precedent ((?:[a-z-]+ ?)+)", text(page)):
        first = command.split()[0]
        if f"`precedent {first}" in text(page):
            assert first in main.commands, command
    for path in re.findall(r"`((?:app|deploy|docs|scenarios|benchmarks)/[\w./-]+)`", text(page)):
        assert (REPOSITORY / path).exists(), path
    for link in re.findall(r"\]\(([^)]+)\)", text(page)):
        assert (REPOSITORY / "docs" / link).exists(), link
