"""`precedent backup` and `restore`: database and originals as one folder that agrees with itself.

The vectors are not in it: they follow from the database's text, and a start without them makes them anew
(app/rag/index/reconcile.py). So a backup taken while documents come and go has no third store to agree with, and one
made over an embedded index can be restored over a Qdrant server.
"""

import asyncio
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app import __version__, migrate
from app.config import Settings
from app.db import Database, now
from app.errors import Conflict, InvalidRequest
from app.operations.machine import serves
from app.operations.servers import index_owner
from app.operations.snapshots import Snapshots, Version, snapshots_of
from app.tenants import audit

MANIFEST = "manifest.json"
FILES = "files"
FORMAT = 1
TRIES = 5


@dataclass(frozen=True)
class Manifest:
    """`files`: SHA-256 by path in the folder. `missing`: originals that the database names and nobody has."""

    version: str
    revision: str
    made_at: str
    database: str
    files: dict[str, str]
    missing: list[str] = field(default_factory=list)
    format: int = FORMAT


async def backup(settings: Settings, folder: Path) -> Manifest:
    """Write everything to `folder`, which must not exist or be empty; a server may run meanwhile.

    Raises Conflict where the folder is not empty, and Unavailable where the database cannot be read.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty; every backup has a folder of its own.")
    await _note(settings, "backup.create", {"folder": folder.name})
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, mode=0o700)
    snapshots = snapshots_of(settings.storage.database_url)
    missing = await _consistent(snapshots, settings.directory / FILES, partial)
    manifest = Manifest(
        version=__version__,
        revision=migrate.head(),
        made_at=now().isoformat(timespec="seconds"),
        database=snapshots.name,
        files=await asyncio.to_thread(_sums, partial),
        missing=sorted(missing),
    )
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)  # a folder of this name is a whole backup
    return manifest


async def restore(settings: Settings, folder: Path, *, force: bool) -> Manifest:
    """Put a backup back; everything is checked before anything is changed.

    Raises InvalidRequest where the backup is incomplete, damaged, of a newer version or another kind of database,
    Conflict where there is data and `force` is not given, or where a server runs.
    """
    snapshots = snapshots_of(settings.storage.database_url)
    manifest = await asyncio.to_thread(read, folder)
    if manifest.database != snapshots.name:
        raise InvalidRequest(f"The backup holds {manifest.database}, storage.database_url needs {snapshots.name}.")
    if not migrate.knows(manifest.revision):
        raise InvalidRequest(f"The backup is of {manifest.version}, which is newer than this version, {__version__}.")
    held = index_owner(settings.directory / "index") is not None
    if held or await asyncio.to_thread(serves, settings.server):
        raise Conflict("A server is running on this data: stop it first.")
    originals = settings.directory / FILES
    if not force and (await snapshots.holds_data() or originals.exists()):
        raise Conflict("There is data already: --force replaces it.")
    await asyncio.to_thread(_replace_originals, folder / FILES, originals)
    await snapshots.put_back(folder / manifest.database)
    shutil.rmtree(settings.directory / "index", ignore_errors=True)
    await _upgrade(settings)
    await _note(settings, "backup.restore", {"made_at": manifest.made_at, "version": manifest.version})
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest, once every file is as it says. Raises InvalidRequest."""
    try:
        given: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if given["format"] != FORMAT:
            raise InvalidRequest(f"{folder} has format {given['format']}, this version reads {FORMAT}.")
        manifest = Manifest(**given)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"{folder} is no complete backup: {MANIFEST} cannot be read.") from error
    found = _sums(folder)
    found.pop(MANIFEST)
    for name in sorted(manifest.files.keys() | found.keys()):
        if manifest.files.get(name) != found.get(name):
            raise InvalidRequest(f"{folder / name} is not as it was backed up: missing, changed or added.")
    return manifest


async def _consistent(snapshots: Snapshots, originals: Path, partial: Path) -> set[str]:
    """The database, and the originals that this state of it names. Returns those that could not be had.

    An original is there before its row, so only a deletion since the moment can take one away: then a later moment,
    which no longer names it, is as good. Originals come before the database, which takes longer, and those copied are
    kept for the next try: so it has little time to miss another, however busy the installation is.
    """
    tries = 0
    while True:
        async with snapshots.moment() as moment:
            missing = await asyncio.to_thread(_copy, moment.named, originals, partial / FILES)
            tries += 1
            if not missing or tries == TRIES:
                await moment.write(partial / snapshots.name)
                return missing


def _copy(named: set[Version], originals: Path, target: Path) -> set[str]:
    target.mkdir(exist_ok=True)
    wanted = {f"{tenant_id}/{version_id}" for tenant_id, version_id in named}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if str(path.relative_to(target)) not in wanted:  # deleted since an earlier try
            path.unlink()
    missing = set()
    for name in wanted:
        (target / name).parent.mkdir(exist_ok=True)
        try:
            if not (target / name).exists():
                shutil.copyfile(originals / name, target / name)
        except FileNotFoundError:
            missing.add(name)
    return missing


def _replace_originals(source: Path, target: Path) -> None:
    incoming, outgoing = target.with_name(FILES + ".restoring"), target.with_name(FILES + ".replaced")
    for left in (incoming, outgoing):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, incoming)
    if target.exists():
        target.rename(outgoing)
    incoming.rename(target)
    shutil.rmtree(outgoing, ignore_errors=True)


def _sums(folder: Path) -> dict[str, str]:
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory) / name
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


async def _upgrade(settings: Settings) -> None:
    database = Database(settings.storage.database_url)
    try:
        await migrate.upgrade(database)
    finally:
        await database.close()


async def _note(settings: Settings, action: str, detail: dict[str, str]) -> None:
    database = Database(settings.storage.database_url)
    try:
        await migrate.require_current(database)
        async with database.session() as session:
            await audit.append(session, audit.CLI, action, "installation", None, detail)
            await session.commit()
    finally:
        await database.close()
