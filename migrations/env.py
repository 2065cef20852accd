"""Alembic environment. The URL and the connection come from `app.migrate`, which runs it in process."""

from alembic import context
from sqlalchemy.engine import Connection

from app.db import UtcDateTime
from app.migrate import metadata


def render(kind: str, item: object, _context: object) -> str | bool:
    """Migrations name types of the library alone, so that they outlive our classes."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def run(connection: Connection) -> None:
    # SQLite cannot alter tables in place: batch mode copies them.
    context.configure(
        connection=connection,
        target_metadata=metadata(),
        render_as_batch=True,
        compare_type=True,
        render_item=render,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
