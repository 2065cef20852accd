"""Bringing the database to the schema of this code, with Alembic."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection

import app.gateway.models
import app.jobs
import app.rag.models
import app.rag.records
import app.tenants.models  # noqa: F401  # each import registers its tables
from app.config import REPOSITORY
from app.db import Base, Database
from app.errors import Unavailable

LOCK = "SELECT pg_advisory_xact_lock(7364012)"  # a number that means this to all of us, kept until the transaction ends


def metadata() -> MetaData:
    """All tables of the application."""
    return Base.metadata


async def upgrade(database: Database) -> None:
    """Apply every migration that is missing. Of several processes that do so at once, as replicas in Kubernetes do when
    they start, one does and the others wait for it.
    """
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("BEGIN IMMEDIATE" if database.is_sqlite else LOCK)
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "head"))


async def require_current(database: Database) -> None:
    """Raise Unavailable when the database is not at this code's revision."""
    needed = head()
    async with database.engine.connect() as connection:
        current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    if current != needed:
        raise Unavailable(
            f"The database is at revision {current}, this version needs {needed}: run 'precedent migrate'."
        )


def head() -> str:
    """The revision that this code needs."""
    found = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert found is not None, "there is a first migration"
    return found


def knows(revision: str) -> bool:
    """Whether a database at `revision` can be brought to this code's."""
    return any(script.revision == revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions())


async def drift(database: Database) -> list[object]:
    """Differences between the migrated database and the models; empty when they agree."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata())
        )


def revision(database_connection: Connection, message: str, rev_id: str) -> None:
    """Write a new migration from the difference between models and database (for developers)."""
    command.revision(_config(database_connection), message=message, autogenerate=True, rev_id=rev_id)


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "migrations"))
    config.set_main_option("file_template", "%%(year)d-%%(month).2d-%%(day).2d_%%(slug)s")
    config.attributes["connection"] = connection
    return config
