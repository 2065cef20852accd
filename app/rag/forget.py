"""Deleting or replacing a document reaches everything that was made of its text.

The commit in the database fences retrieval. Right after it everybody who holds text, keys and values, or an answer in
flight is told which sources are gone: a document's id stands for all of its versions, `id/version` for one.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from uuid import UUID

MAX_REMEMBERED = 100_000  # the latest; what still reads an older one has been at it for moments, not for days
Listener = Callable[[Collection[str]], Awaitable[None]]


def source_ids(document_id: UUID | str, version: int) -> tuple[str, str]:
    """How a text of this version is named: both ways, since either may be forgotten."""
    return str(document_id), f"{document_id}/{version}"


class Forgetting:
    """What is gone, and whom to tell. A listener must hold to it for whatever it is asked from then on."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._gone: dict[str, None] = {}

    def tell(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def document(self, document_id: UUID) -> None:
        """Deleted, with all its versions."""
        await self._forget({str(document_id)})

    async def versions_before(self, document_id: UUID, version: int) -> None:
        """Replaced by this version."""
        if version > 1:
            await self._forget({f"{document_id}/{old}" for old in range(1, version)})

    async def sources(self, gone: Collection[str]) -> None:
        """As another process says it."""
        await self._forget(gone)

    def any_gone(self, sources: Iterable[str]) -> bool:
        """Whether one of these may not be used any more. For text that was read before and is not used yet."""
        return any(source in self._gone for source in sources)

    async def _forget(self, gone: Collection[str]) -> None:
        self._gone.update(dict.fromkeys(gone))
        while len(self._gone) > MAX_REMEMBERED:
            del self._gone[next(iter(self._gone))]
        failed: list[Exception] = []
        for listener in self._listeners:
            try:
                await listener(gone)
            except Exception as error:  # the others hold text too, and are not told a second time
                failed.append(error)
        if failed:
            raise failed[0]
