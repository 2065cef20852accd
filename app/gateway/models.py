"""Tables of the gateway."""

from uuid import UUID

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped


class RequestRecord(TenantScoped, Base):
    """The request log: who asked what of whom and what it took. Never prompts or answers."""

    __tablename__ = "requests"

    key_id: Mapped[UUID]
    model: Mapped[str] = mapped_column(String(200))
    target: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(40))
    fallbacks: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    first_delta_ms: Mapped[float]
    total_ms: Mapped[float]
