"""Secrets at rest: Fernet (AES-128-CBC and HMAC-SHA256, https://github.com/fernet/spec) under keys of the operator."""

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.errors import ConfigurationError, Conflict


class Sealer:
    """The first key encrypts, all decrypt: that is how keys are changed. Without a key nothing can be stored."""

    def __init__(self, keys: str) -> None:
        try:
            fernets = [Fernet(key.strip()) for key in keys.split(",") if key.strip()]
        except ValueError as error:
            raise ConfigurationError("[auth] encryption_key is none: `precedent secret-key` makes one") from error
        self._fernet = MultiFernet(fernets) if fernets else None

    def seal(self, secret: str) -> str:
        """Raises Conflict where no key is configured."""
        return self._keys().encrypt(secret.encode()).decode()

    def open(self, sealed: str, max_age: int | None = None) -> str:
        """`max_age` in seconds. Raises ConfigurationError where none of the keys fits, or it is too old."""
        try:
            return self._keys().decrypt(sealed.encode(), ttl=max_age).decode()
        except InvalidToken as error:
            raise ConfigurationError("A stored secret cannot be decrypted with [auth] encryption_key.") from error

    def reseal(self, sealed: str) -> str:
        """The same under the first key."""
        return self._keys().rotate(sealed.encode()).decode()

    def _keys(self) -> MultiFernet:
        if self._fernet is None:
            raise Conflict("Secrets cannot be stored: PRECEDENT_AUTH_ENCRYPTION_KEY is not set.")
        return self._fernet


def new_key() -> str:
    return Fernet.generate_key().decode()
