"""Failed logins by account and by address, counted in the database: all replicas see the same."""

import hashlib
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, now
from app.errors import RateLimited
from app.tenants.models import LoginFailure

WINDOW = timedelta(minutes=5)


class Failures:
    """Those of the last five minutes; names are kept as hashes alone."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit

    async def count(self, *names: str) -> None:
        """Count an attempt as failed, before it is looked at: many at once are not more than the limit either.

        Raises RateLimited where one of the names has failed too often; such attempts are not counted.
        """
        hashes = [_hashed(name) for name in names]
        async with self._database.session() as session:
            await self._require_fewer(session, hashes, self._limit)
            # Whoever fails takes old rows away.
            await session.execute(delete(LoginFailure).where(LoginFailure.created_at < now() - WINDOW))
            session.add_all([LoginFailure(name=name) for name in hashes])
            await session.commit()
            await self._require_fewer(session, hashes, self._limit + 1)

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

    async def forgive(self, account: str, place: str) -> None:
        """This attempt was right after all: the account starts anew, its address loses this one."""
        async with self._database.session() as session:
            await session.execute(delete(LoginFailure).where(LoginFailure.name == _hashed(account)))
            latest = select(LoginFailure.id).where(LoginFailure.name == _hashed(place))
            await session.execute(
                delete(LoginFailure).where(
                    LoginFailure.id.in_(latest.order_by(LoginFailure.id.desc()).limit(1).scalar_subquery())
                )
            )
            await session.commit()


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
