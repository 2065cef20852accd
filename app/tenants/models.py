"""Tables of tenants and their keys."""

from datetime import datetime

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped


class Tenant(Base):
    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(100), unique=True)


class ApiKey(TenantScoped, Base):
    """A key is kept as the SHA-256 of its 256 random bits: no salt or slow hash is needed at that entropy.

    `prefix` is what people may see of it. `labels` are the matters the key may read and file under.
    """

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    labels: Mapped[list[str]]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
