"""Tables of tenants, their people and keys, what they may spend, and what was done."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped


class Limited:
    """Mixin of who may be limited: most requests and tokens in a minute and requests at once.

    None: the default of [limits] for a key, no limit for a tenant.
    """

    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    concurrency: Mapped[int | None]


class Tenant(Limited, Base):
    """`regions`: the only ones that may compute for it (empty: any). `privileged`: all it sends is under privilege."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(100), unique=True)
    regions: Mapped[list[str]] = mapped_column(default=list)
    privileged: Mapped[bool] = mapped_column(default=False)


class User(TenantScoped, Base):
    """A person. `role`: see roles.py. `operator`: also runs the installation, above all tenants.

    `subject` is "issuer#sub" of who logs in through OpenID Connect; `labels` are the matters the person holds.
    """

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(10))
    labels: Mapped[list[str]]
    operator: Mapped[bool] = mapped_column(default=False)
    password_hash: Mapped[str | None] = mapped_column(String(200))
    subject: Mapped[str | None] = mapped_column(String(500), unique=True)
    disabled_at: Mapped[datetime | None]
    last_login_at: Mapped[datetime | None]


class Session(TenantScoped, Base):
    """A login in a browser, kept as the SHA-256 of its token's 256 random bits."""

    __tablename__ = "sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime]


class SignInLink(TenantScoped, Base):
    """A link that logs a person in once, kept as the SHA-256 of its token's 256 random bits."""

    __tablename__ = "sign_in_links"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime]


class LoginFailure(Base):
    """An attempt to log in that failed or is not over yet. `name`: the SHA-256 of an account or an address."""

    __tablename__ = "login_failures"

    name: Mapped[str] = mapped_column(String(64), index=True)


class ApiKey(Limited, TenantScoped, Base):
    """A key is kept as the SHA-256 of its 256 random bits: no salt or slow hash is needed at that entropy.

    `prefix` is what people may see of it. `labels` are the matters the key may read and file under. `models` and
    `networks` (CIDR): the only ones it may ask and be used from; empty: any. After a rotation the previous secret
    works until `previous_until`. `user_id`: who made it; it ends when that person is disabled.
    """

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    previous_hash: Mapped[str | None] = mapped_column(String(64), index=True)
    previous_until: Mapped[datetime | None]
    scopes: Mapped[list[str]]
    labels: Mapped[list[str]]
    models: Mapped[list[str]] = mapped_column(default=list)
    networks: Mapped[list[str]] = mapped_column(default=list)
    user_id: Mapped[UUID | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Matter(TenantScoped, Base):
    """What a label stands for. Who holds the parent holds the children. A closed matter takes no more documents."""

    __tablename__ = "matters"
    __table_args__ = (UniqueConstraint("tenant_id", "label"),)

    label: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(String(2000), default="")
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("matters.id"), index=True)
    closed_at: Mapped[datetime | None]


class MatterMember(TenantScoped, Base):
    """`access`: allow, or deny: an ethical wall, which wins over everything that would let the person in."""

    __tablename__ = "matter_members"
    __table_args__ = (UniqueConstraint("matter_id", "user_id"),)

    matter_id: Mapped[UUID] = mapped_column(ForeignKey("matters.id", ondelete="CASCADE"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    access: Mapped[str] = mapped_column(String(5))


class Budget(TenantScoped, Base):
    """The most that a tenant, or one of its keys or users, may spend in a UTC day, a UTC month or ever."""

    __tablename__ = "budgets"

    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[UUID | None] = mapped_column(index=True)
    window: Mapped[str] = mapped_column(String(5))
    limit_micros: Mapped[int] = mapped_column(BigInteger)


class AuditEntry(Base):
    """One thing that somebody did. Rows are never changed or deleted (the database refuses it), and each holds the
    hash of the one before. No foreign keys: an entry outlives what it is about. `tenant_id` None: the installation.
    """

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(BigInteger, unique=True)
    tenant_id: Mapped[UUID | None] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(50), index=True)
    object: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """The one row that says where the chain ends. Whoever appends locks it first."""

    __tablename__ = "audit_head"

    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
