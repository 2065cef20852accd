"""Cursors of lists that grow: the place after the last row shown, opaque to callers."""

import base64
import binascii
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select

from app.errors import InvalidRequest

MAX_LIMIT = 500


def encode(row_id: UUID) -> str:
    return base64.urlsafe_b64encode(row_id.bytes).rstrip(b"=").decode()


def decode(cursor: str) -> UUID:
    """Raises InvalidRequest."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor + "=="))
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest("The cursor is not one of ours.", param="cursor") from error


def first_id(at: datetime) -> UUID:
    """The smallest id that a row of that time or later can have; a second of grace for clocks and for callers' haste.

    Beside a condition on `created_at` it lets the index that also gives the order serve the range.
    """
    return UUID(int=max(0, int(at.timestamp() * 1000) - 1_000) << 80)


def page(query: Select[Any], model: Any, cursor: str | None, limit: int) -> Select[Any]:
    """Newest first. Ids are UUIDv7, in the order of time, so that they are the cursor; one row more tells of a next
    page.
    """
    if cursor:
        query = query.where(model.id < decode(cursor))
    return query.order_by(model.id.desc()).limit(min(limit, MAX_LIMIT) + 1)


def cut(rows: list[Any], limit: int) -> tuple[list[Any], str | None]:
    """(the rows of the page, the cursor of the next one)."""
    size = min(limit, MAX_LIMIT)
    return rows[:size], encode(rows[size - 1].id) if len(rows) > size else None
