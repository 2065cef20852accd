"""Weights pinned like code: a folder must match a list of SHA-256 sums before anything of it is read.

The list has the format of `sha256sum` (GNU coreutils), so `sha256sum *.json *.safetensors > SHA256SUMS` writes one and
`sha256sum -c` checks one. No torch.
"""

import hashlib
import re
import time
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
OWN = "SHA256SUMS"  # the name of the list in a model's own folder
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
    write(path, {file.name: sha256(file) for file in readable(folder)})


def write(path: Path, sums: dict[str, str]) -> None:
    """A list of these sums by file name."""
    path.write_text("".join(f"{found}  {name}\n" for name, found in sums.items()), encoding="utf-8")


def verify_folder(folder: Path, pinned: Path | None = None) -> None:
    """By the list `pinned`, else by the folder's own SHA256SUMS, where there is one. Raises ValueError as verify()."""
    own = folder / OWN
    path = pinned or (own if own.is_file() else None)
    if path is not None:
        verify(folder, path)


def verify(folder: Path, path: Path) -> None:
    """Raises ValueError naming the first file that is missing, changed, or not in the list at all."""
    if not path.is_file():
        raise ValueError(f"checksums {path} does not exist")
    sums = read_sums(path)
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {path} lists it")
        if _remembered(folder / name) != expected:
            raise ValueError(f"{folder / name} does not match its SHA-256 in {path}: it was changed or damaged")
    for file in readable(folder):
        if file.name not in sums:
            raise ValueError(f"{file} is not listed in {path}; a model may not gain files unnoticed")


def readable(folder: Path) -> list[Path]:
    """The files that the engine reads."""
    return sorted(file for pattern in READ for file in folder.glob(pattern))


def sha256(path: Path) -> str:
    """In hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Path to what the file system said of it when it was hashed, and its sum.
_known: dict[Path, tuple[tuple[int, ...], str]] = {}
_SETTLED_SECONDS = 2.0


def _remembered(path: Path) -> str:
    """The sum, read again only where the file is another one or has changed since this process hashed it.

    A model that wakes would else be read twice. Whoever can write to the file cannot set its change time back; one that
    has just changed is not remembered, since a second change within a tick of the clock looks like the first.
    """
    status = path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if path in _known and _known[path][0] == stamp:
        return _known[path][1]
    found = sha256(path)
    if time.time() - status.st_ctime > _SETTLED_SECONDS:
        _known[path] = stamp, found
    return found


def forget_known() -> None:
    """Hash every file again the next time, as a new process would."""
    _known.clear()
