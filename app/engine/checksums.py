"""Weights pinned like code: a folder must match a list of SHA-256 sums before anything of it is read.

The list has the format of `sha256sum` (GNU coreutils), so `sha256sum *.json *.safetensors > SHA256SUMS` writes one and
`sha256sum -c` checks one. No torch.
"""

import hashlib
import re
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
READ = ("*.safetensors", "*.json", "*.model", "*.jinja")  # whatever the engine reads of a folder


def read_sums(path: Path) -> dict[str, str]:
    """File name to SHA-256 in hex. Raises ValueError naming a line that is not one."""
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{path} line {number} is not '<sha256>  <file>': {line[:80]!r}")
        sums[found[2]] = found[1]
    return sums


def write_sums(folder: Path, path: Path) -> None:
    """The sums of everything in `folder` that the engine reads."""
    lines = [f"{_sha256(file)}  {file.name}\n" for file in _readable(folder)]
    path.write_text("".join(lines), encoding="utf-8")


def verify(folder: Path, path: Path) -> None:
    """Raises ValueError naming the first file that is missing, changed, or not in the list at all."""
    if not path.is_file():
        raise ValueError(f"checksums {path} does not exist")
    sums = read_sums(path)
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {path} lists it")
        if _sha256(folder / name) != expected:
            raise ValueError(f"{folder / name} does not match its SHA-256 in {path}: it was changed or damaged")
    for file in _readable(folder):
        if file.name not in sums:
            raise ValueError(f"{file} is not listed in {path}; a model may not gain files unnoticed")


def _readable(folder: Path) -> list[Path]:
    return sorted(file for pattern in READ for file in folder.glob(pattern))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
