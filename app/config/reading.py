"""From TOML and environment variables to dataclasses; every value of the declared type or an error that names it."""

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from app.errors import ConfigurationError

T = TypeVar("T")
ALIASES = {"PRECEDENT_MODEL": "PRECEDENT_ENGINE_MODEL"}
# Read by the command line (where is the server, which key), not part of the server's own settings.
CLIENT_VARIABLES = {"PRECEDENT_CONFIG", "PRECEDENT_URL", "PRECEDENT_KEY"}


def read_file(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise ConfigurationError(f"{path}: no such configuration file")
        return {}
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def variable(section: str, name: str) -> str:
    return f"PRECEDENT_{section}_{name}".upper()


def variables_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Ours by name. X_FILE names a file that holds X, as container platforms hand in secrets."""
    found = {}
    for name, value in environ.items():
        if not name.startswith("PRECEDENT_") or name in CLIENT_VARIABLES:
            continue
        if name.endswith("_FILE"):
            name, value = name.removesuffix("_FILE"), _secret(name, Path(value))
        found[ALIASES.get(name, name)] = value
    return found


def _secret(name: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"{name}: {path} cannot be read: {error.strerror}") from error


def overrides(section: str, kind: type[Any], variables: dict[str, str]) -> dict[str, str]:
    names = [f.name for f in dataclasses.fields(kind)]
    return {n: variables.pop(v) for n in names if (v := variable(section, n)) in variables}


def build_list(kind: type[T], entries: list[dict[str, Any]], where: str) -> tuple[T, ...]:
    return tuple(build(kind, entry, where, {}) for entry in entries)


def build(kind: type[T], given: dict[str, Any], where: str, overrides: dict[str, str]) -> T:
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
        if get_args(kind)[0] is int:
            return tuple(_convert(item, int, where) for item in items)
        return tuple(str(item).strip() for item in items)
    if kind is bool:
        return _boolean(value, where)
    wrong = (kind is str and not isinstance(value, str)) or (kind is int and isinstance(value, float))
    if wrong or isinstance(value, bool):
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
