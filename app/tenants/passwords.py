"""Passwords: argon2id with the library's own parameters, computed off the event loop and few at a time."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import InvalidRequest

MIN_LENGTH, MAX_LENGTH = 12, 256
_hasher = PasswordHasher()
# Verified where there is no account, so that a wrong name takes as long as a wrong password.
_NOBODY = _hasher.hash("nobody has this password")


class Passwords:
    """Each computation takes 64 MiB: a few at a time, whatever anybody sends."""

    def __init__(self, at_once: int = 2) -> None:
        self._slots = asyncio.Semaphore(at_once)

    async def hash(self, password: str) -> str:
        """Raises InvalidRequest for one that is too short or too long."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InvalidRequest(f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters.", param="password")
        async with self._slots:
            return await asyncio.to_thread(_hasher.hash, password)

    async def verify(self, password: str, hashed: str | None) -> bool:
        """False also where there is no hash; that takes as long."""
        async with self._slots:
            right = await asyncio.to_thread(_matches, password[: MAX_LENGTH + 1], hashed or _NOBODY)
        return right and hashed is not None


def _matches(password: str, hashed: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except (VerificationError, InvalidHashError):
        return False
