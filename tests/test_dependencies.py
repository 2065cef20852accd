"""What the application is made of: every package is pinned, as pinned, and under a licence that lets us ship it."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
# Permissive ones, and MPL 2.0, which binds changes of its own files alone.
ALLOWED = re.compile(
    r"\b(?:Apache|MIT|BSD|0BSD|ISC|PSF|Python Software Foundation|MPL|Mozilla Public|Zlib|CC0|BSL-1\.0|Unlicense)\b",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"(?<!Lesser )\b(?:A?GPL|GNU General|GNU Affero|SSPL|BUSL|Commons Clause|Proprietary)\b", re.IGNORECASE
)


def pinned() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


def shipped() -> dict[str, tuple[str, str]]:
    """Version and licence of everything that `pip install .` brings, by name."""
    found: dict[str, tuple[str, str]] = {}
    waiting = [("precedent", frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        if canonicalize_name(name) in found:
            continue
        package = distribution(name)
        found[canonicalize_name(name)] = (package.version, _licence(package.metadata))
        for line in package.requires or ():
            needed = Requirement(line)
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": one}) for one in {"", *extras})
            waiting += [(needed.name, frozenset(needed.extras))] if wanted else []
    for ours in ("precedent", "setuptools"):  # the latter is the environment's own
        found.pop(ours, None)
    return found


def _licence(metadata: object) -> str:
    given = metadata.get_all("License-Expression") or [  # type: ignore[attr-defined]
        one.rpartition("::")[2].strip()
        for one in metadata.get_all("Classifier") or ()  # type: ignore[attr-defined]
        if one.startswith("License ::")
    ]
    return "; ".join(given) or str(metadata.get("License") or "").splitlines()[0]  # type: ignore[attr-defined]


SHIPPED = shipped()


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_package_is_pinned_and_may_be_shipped(name: str) -> None:
    version, licence = SHIPPED[name]
    assert version.partition("+")[0] == pinned().get(name), "run `pip install -c constraints.txt`, or pin it there"
    assert ALLOWED.search(licence) and not REFUSED.search(licence), licence


def test_what_may_not_be_shipped_would_be_found() -> None:
    for licence in ("GPL-3.0-only", "AGPL-3.0", "GNU General Public License v3 (GPLv3)", "BUSL-1.1"):
        assert REFUSED.search(licence) or not ALLOWED.search(licence), licence
    assert len(SHIPPED) > 50
