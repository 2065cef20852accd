"""Logins of people: a cookie that scripts cannot read, and a token against requests that other sites forge."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import AuthSettings
from app.db import Database, now
from app.errors import Unauthenticated
from app.tenants import audit
from app.tenants.failures import Failures
from app.tenants.models import Session, SignInLink, User
from app.tenants.passwords import Passwords
from app.tenants.principal import Principal
from app.tenants.service import hash_key, principal_of_user

LINK_LIFETIME = timedelta(minutes=30)


@dataclass(frozen=True)
class Login:
    """A session at the one moment its token is known."""

    token: str
    user: User


class Logins:
    """Logging in with a password, and out again."""

    def __init__(self, database: Database, settings: AuthSettings) -> None:
        self._database = database
        self._lifetime = timedelta(hours=settings.session_hours)
        self._failures = Failures(database, settings.login_attempts)
        self.passwords = Passwords()

    async def with_password(self, email: str, password: str, address: str) -> Login:
        """Raises Unauthenticated, which does not tell why, and RateLimited after too many failures."""
        account, place = f"account:{email.lower()}", f"address:{address}"
        attempt = await self._failures.count(account, place)
        async with self._database.session() as session:
            user = await session.scalar(select(User).where(User.email == email.lower()))
        right = await self.passwords.verify(password, user.password_hash if user else None)
        if not right or user is None or user.disabled_at:
            await self._note_failure(user, address)
            raise Unauthenticated("Name or password is wrong.")
        await self._failures.forgive(account, attempt)
        return await self.begin(user, "password")

    async def with_link(self, token: str, address: str) -> Login:
        """A link works once. Raises Unauthenticated, which does not tell why, and RateLimited."""
        link, place = f"link:{hash_key(token)}", f"address:{address}"
        attempt = await self._failures.count(link, place)
        async with self._database.session() as session:
            # One statement, so that of two browsers at once one alone is let in.
            taken = delete(SignInLink).where(SignInLink.hash == hash_key(token), SignInLink.expires_at > now())
            user_id = await session.scalar(taken.returning(SignInLink.user_id))
            user = await session.get(User, user_id) if user_id else None
            await session.commit()
        if user is None or user.disabled_at:
            raise Unauthenticated("This link was used already or has expired.")
        await self._failures.forgive(link, attempt)
        return await self.begin(user, "link")

    async def begin(self, user: User, how: str) -> Login:
        """A session for somebody who has proved who they are."""
        token = secrets.token_urlsafe(32)
        async with self._database.session() as session:
            expires = now() + self._lifetime
            session.add(Session(tenant_id=user.tenant_id, user_id=user.id, hash=hash_key(token), expires_at=expires))
            stored = await session.get_one(User, user.id)
            stored.last_login_at = now()
            # Whoever logs in takes expired sessions away; after the person's row, as whoever ends all sessions does, or
            # each would wait for the other.
            await session.execute(delete(Session).where(Session.expires_at < now()))
            await audit.append(session, f"user:{user.id}", "login", f"user:{user.id}", user.tenant_id, {"how": how})
            await session.commit()
        return Login(token, user)

    async def end(self, token: str) -> None:
        async with self._database.session() as session:
            await session.execute(delete(Session).where(Session.hash == hash_key(token)))
            await session.commit()

    async def _note_failure(self, user: User | None, address: str) -> None:
        """Failed logins to accounts that exist are in the audit log of their tenant."""
        if user is None:
            return
        async with self._database.session() as session:
            subject = f"user:{user.id}"
            await audit.append(session, subject, "login.failed", subject, user.tenant_id, {"address": address})
            await session.commit()


async def make_link(session: AsyncSession, user: User) -> str:
    """A token that logs the person in once; links of theirs that were not used, and all expired ones, end."""
    token = secrets.token_urlsafe(32)
    await session.execute(delete(SignInLink).where((SignInLink.user_id == user.id) | (SignInLink.expires_at < now())))
    expires = now() + LINK_LIFETIME
    session.add(SignInLink(tenant_id=user.tenant_id, user_id=user.id, hash=hash_key(token), expires_at=expires))
    await audit.append(session, audit.CLI, "login.link", f"user:{user.id}", user.tenant_id, {})
    await session.commit()
    return token


async def end_sessions(session: AsyncSession, user_id: UUID) -> None:
    """All sessions of a person, and links to new ones, in the caller's transaction."""
    await session.execute(delete(Session).where(Session.user_id == user_id))
    await session.execute(delete(SignInLink).where(SignInLink.user_id == user_id))


async def find_session(session: AsyncSession, token: str) -> Principal | None:
    """Who is logged in with the token; None for unknown and expired ones and disabled people."""
    query = select(Session, User).join(User, User.id == Session.user_id).where(Session.hash == hash_key(token))
    row = (await session.execute(query)).first()
    if row is None:
        return None
    login, user = row
    if login.expires_at <= now() or user.disabled_at:
        return None
    return await principal_of_user(session, user)


def csrf_token(token: str) -> str:
    """What a page of ours must send with requests that change something. Another site can neither read nor guess it."""
    return hmac.new(token.encode(), b"precedent csrf", hashlib.sha256).hexdigest()


def csrf_matches(token: str, given: str) -> bool:
    return hmac.compare_digest(csrf_token(token).encode(), given.encode())
