"""Failed logins by account and by address, counted in the database: all replicas see the same."""

import hashlib
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db import Database, now
from app.errors import RateLimited
from app.tenants.models import LoginFailure

WINDOW = timedelta(minutes=5)


class Failures:
    """Those of the last five minutes; names are kept as hashes alone."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    async def count(self, *names: str) -> list[UUID]:
        """Count an attempt as failed, before it is looked at: many at once are not more than the limit either. Returns
        what `forgive` takes.

        Raises RateLimited where one of the names has failed too often; such attempts are not counted.
        """
        hashes = [_hashed(name) for name in names]
        async with self._database.session() as session:
            await self._require_fewer(session, hashes, self._limit)
            # Whoever fails takes old rows away.
            await session.execute(delete(LoginFailure).where(LoginFailure.created_at < now() - WINDOW))
            counted = [LoginFailure(id=uuid7(), name=name) for name in hashes]
            session.add_all(counted)
            await session.commit()
            await self._require_fewer(session, hashes, self._limit + 1)
        return [row.id for row in counted]

    async def _require_fewer(self, session: AsyncSession, hashes: list[str], limit: int) -> None:
        rows = select(LoginFailure.name, LoginFailure.created_at).where(
            LoginFailure.name.in_(hashes), LoginFailure.created_at >= now() - WINDOW
        )
        found = (await session.execute(rows.order_by(LoginFailure.created_at.desc()))).all()
        for name in hashes:
            times = [at for who, at in found if who == name]
            if len(times) >= limit:
                wait = (times[limit - 1] + WINDOW - now()).total_seconds()
                raise RateLimited("Too many failed logins; try again later.", retry_after=max(1.0, wait))

    async def forgive(self, account: str, attempt: list[UUID]) -> None:
        """This attempt was right after all: the account starts anew, its address loses this one and no other's."""
        right = or_(LoginFailure.name == _hashed(account), LoginFailure.id.in_(attempt))
        async with self._database.session() as session:
            await session.execute(delete(LoginFailure).where(right))
            await session.commit()


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
