"""The settings in force, as people may see them: secrets are said to be there and not shown."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from app.config.settings import LISTS, Settings, documented

SECRET = re.compile(r"(key|token|secret|password)$")
PASSWORD = re.compile(r"(?<=://)[^@/]*@")
HIDDEN = "…"


@dataclasses.dataclass(frozen=True)
class Shown:
    """`variable`: of the environment; "" where the file alone says it."""

    section: str
    name: str
    value: str
    changed: bool
    variable: str
    meaning: str


def shown(settings: Settings) -> Iterator[Shown]:
    """Every setting of the sections. Targets, routes and prices have lists of their own."""
    for section, name, variable, default, meaning in documented():
        if section in LISTS:
            continue
        value = getattr(getattr(settings, section), name)
        yield Shown(section, name, _text(name, value), value != default, variable, meaning)


def _text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(name, one) for one in value)
    if isinstance(value, str) and value and SECRET.search(name):
        return HIDDEN
    return PASSWORD.sub(f"{HIDDEN}@", value) if isinstance(value, str) else str(value)
