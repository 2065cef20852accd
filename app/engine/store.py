"""Models by name in one folder: where each came from, what it is, and whether it is still what it was.

    NAME/        the model's own files
    NAME.json    its manifest

A model is there when both are. An add that was killed leaves at most a manifest alone, which the next one
overwrites, and a folder with a dot before its name, which the next add or remove deletes.

A pinned model has SHA256SUMS in its folder, which the engine checks before it reads anything (checksums.py).
"""

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from app.engine.architecture import DecoderSpec, read_spec
from app.engine.checksums import OWN, readable, sha256, verify_folder, write
from app.engine.quant.layers import linear_layers
from app.engine.runner import resolve_folder
from app.errors import AppError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDING, _REMOVING, _LOCK = ".adding-", ".removing-", ".lock"
_TERMS = ("LICENSE*", "NOTICE*", "README*")  # under which one has it


class StoreError(AppError):
    code = "model_store_error"


@dataclass(frozen=True, slots=True)
class File:
    """size: bytes.  sha256: in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """source: hub id or folder.  revision: the commit of a hub model, else "".  added: ISO 8601, UTC."""

    name: str
    source: str
    revision: str
    added: str
    family: str
    parameters: int
    quantization: str
    pinned: bool
    files: dict[str, File]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files.values())


class Store:
    """Raises StoreError for whatever is wrong with a name, a source or the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, source: str, *, name: str = "", revision: str = "") -> Manifest:
        """Copy a folder, or fetch a hub model, and write down what it is.

        What the hub's cache holds is linked, since nothing changes it in place; where that cannot be, it is copied.
        """
        name = name or Path(source).name
        self._require_free(name)
        origin, commit = _locate(source, revision)
        with self._alone():
            self._require_free(name)
            temporary = self.folder / f"{_ADDING}{name}"
            try:
                temporary.mkdir()
                files = {path.name: _take(path, temporary / path.name, link=bool(commit)) for path in _wanted(origin)}
                manifest = _describe(name, source, commit, temporary, files)
                self._write(manifest)
                temporary.rename(self._place(name))  # now it is there
            except OSError as error:
                raise StoreError(f"{source} could not be copied: {error}") from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return manifest

    def remove(self, name: str) -> int:
        """Delete the model, of a link the link alone. Returns the bytes of files that nobody else links: those are
        free now."""
        folder, manifest = self._place(name), self._manifest(name)
        with self._alone():
            if not (folder.is_dir() or folder.is_symlink() or manifest.is_file()):
                raise self._unknown(name)
            try:
                freed = _remove(folder, self.folder / f"{_REMOVING}{name}")
                manifest.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"{name!r} could not be removed: {error}") from error
        return freed

    def verify(self, name: str) -> list[str]:
        """Read every file again: a sentence for each that differs, is missing, or is not in the manifest."""
        folder, files = self._place(name), self.manifest(name).files
        there = {path.name for path in folder.iterdir()}
        found = [f"{name}: {file} is missing" for file in sorted(files.keys() - there)]
        for file in sorted(files.keys() & there):
            if sha256(folder / file) != files[file].sha256:
                found.append(f"{name}: {file} differs from its SHA-256")
        return found + [f"{name}: {file} is not in the manifest" for file in sorted(there - files.keys() - {OWN})]

    def pin(self, name: str) -> Manifest:
        """From now on the engine refuses any other content. Raises StoreError where verify() finds something."""
        if wrong := self.verify(name):
            raise StoreError("Not pinned. " + "; ".join(wrong))
        manifest = replace(self.manifest(name), pinned=True)
        folder = self._place(name)
        write(folder / OWN, {path.name: manifest.files[path.name].sha256 for path in readable(folder)})
        self._write(manifest)
        return manifest

    def manifest(self, name: str) -> Manifest:
        path = self._manifest(name)
        if not (path.is_file() and self._place(name).is_dir()):
            raise self._unknown(name)
        try:
            read: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return Manifest(**read | {"files": {file: File(**one) for file, one in read["files"].items()}})
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{path} is not a manifest: {error}") from error

    def __iter__(self) -> Iterator[Manifest]:
        names = [path.stem for path in sorted(self.folder.glob("*.json"))]
        return (self.manifest(name) for name in names if self._place(name).is_dir())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process adds or removes meanwhile; so what lies half done is left over, and goes."""
        with ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((self.folder / _LOCK).open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it goes with the process, however that ends
                for left in (*self.folder.glob(f"{_ADDING}*"), *self.folder.glob(f"{_REMOVING}*")):
                    shutil.rmtree(left)
            except BlockingIOError:
                raise StoreError(f"Another process adds or removes a model in {self.folder}; try it later.") from None
            except OSError as error:
                raise StoreError(f"{self.folder} cannot be changed: {error}") from error
            yield

    def _require_free(self, name: str) -> None:
        if self._place(name).exists():
            raise StoreError(f"There is a model {name!r} in {self.folder} already; give this one another --name.")

    def _unknown(self, name: str) -> StoreError:
        return StoreError(f"There is no model {name!r} in {self.folder}.")

    def _place(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or name.endswith(".json"):  # that is another model's manifest
            raise StoreError(
                f"{name!r} is no name for a model: letters, digits, dots, dashes and underscores, without .json at the "
                "end; give it another --name."
            )
        return self.folder / name

    def _manifest(self, name: str) -> Path:
        return self._place(name).with_name(f"{name}.json")

    def _write(self, manifest: Manifest) -> None:
        """Replaced as a whole: a reader sees the old one or the new one."""
        path = self._manifest(manifest.name)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)


def _locate(source: str, revision: str) -> tuple[Path, str]:
    """The folder, and the commit of a hub model. A folder that brings its own SHA256SUMS must match it."""
    try:
        folder = resolve_folder(source, revision or None)
        if not Path(source).exists():
            return folder, folder.name  # snapshots/<commit> in the hub's cache
        if not folder.is_dir():
            raise ValueError(f"{source} is not a folder")
        verify_folder(folder)
    except ValueError as error:
        raise StoreError(str(error)) from error
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(f"{source!r} could not be fetched from the hub: {reason}") from error
    return folder, ""


def _wanted(folder: Path) -> list[Path]:
    """What the engine reads, and the terms under which one has it."""
    terms = [path for pattern in _TERMS for path in folder.glob(pattern) if path.is_file()]
    return sorted({*readable(folder), *terms})


def _take(origin: Path, target: Path, *, link: bool) -> File:
    if link:
        try:
            os.link(origin.resolve(), target)
        except OSError:  # another file system
            shutil.copyfile(origin, target)
    else:
        shutil.copyfile(origin, target)
    return File(target.stat().st_size, sha256(target))


def _remove(folder: Path, aside: Path) -> int:
    """Put aside first, so that nobody finds a part of it. Links are not followed."""
    if folder.is_symlink() or not folder.exists():
        folder.unlink(missing_ok=True)
        return 0
    folder.rename(aside)
    found = [path.lstat() for path in aside.rglob("*")]
    shutil.rmtree(aside)
    return sum(one.st_size for one in found if stat.S_ISREG(one.st_mode) and one.st_nlink == 1)


def _describe(name: str, source: str, commit: str, folder: Path, files: dict[str, File]) -> Manifest:
    try:
        spec = read_spec(folder)
    except (ValueError, OSError) as error:
        raise StoreError(f"{source} is no model that the engine serves: {error}") from error
    if not any(file.endswith(".safetensors") for file in files):
        raise StoreError(f"{source} has no *.safetensors; other weight formats are not read")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method", "none")
    added = datetime.now(UTC).isoformat(timespec="seconds")
    origin = source if commit else str(Path(source).resolve())
    return Manifest(name, origin, commit, added, spec.family, num_parameters(spec), method, False, files)


def num_parameters(spec: DecoderSpec) -> int:
    """Of the model as it was before it was quantized."""
    linears = sum(prod(shape) for shapes in linear_layers(spec).values() for shape in shapes.values())
    heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    biases = spec.qkv_bias * heads + spec.output_bias * spec.hidden_size
    biases += spec.mlp_bias * (2 * spec.intermediate_size + spec.hidden_size)
    norms = 2 * spec.hidden_size + spec.qk_norm * 2 * spec.head_dim
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tied else 2)
    return embeddings + spec.hidden_size + spec.num_layers * (linears + biases + norms)
