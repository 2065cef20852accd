"""Uploaded originals, one file a version, in a folder of the tenant's."""

import asyncio
from pathlib import Path
from uuid import UUID

from app.rag.models import DocumentVersion


class FileStore:
    """Reads and writes the originals below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "files"

    def _path(self, tenant_id: UUID, version_id: UUID) -> Path:
        return self._directory / str(tenant_id) / str(version_id)

    async def write(self, version: DocumentVersion, data: bytes) -> None:
        path = self._path(version.tenant_id, version.id)
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_bytes, data)

    async def read(self, version: DocumentVersion) -> bytes:
        return await asyncio.to_thread(self._path(version.tenant_id, version.id).read_bytes)

    async def remove(self, tenant_id: UUID, version_id: UUID) -> None:
        await asyncio.to_thread(self._path(tenant_id, version_id).unlink, missing_ok=True)
