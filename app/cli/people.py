"""`precedent tenant`, `key`, `user`, `audit`: who may, on the configured database."""

from typing import Any

import click
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from app.cli.base import console, split, with_session
from app.tenants import audit, service, users
from app.tenants.passwords import Passwords
from app.tenants.principal import TENANT_SCOPES, Scope

ALL_SCOPES = ",".join(scope for scope in Scope if scope in TENANT_SCOPES)


@click.group()
def tenant() -> None:
    """Tenants (works on the configured database)."""


@tenant.command("create")
@click.argument("name")
def tenant_create(name: str) -> None:
    created = with_session(lambda session: service.create_tenant(session, name))
    console.print(f"{created.id}  {created.name}")


@tenant.command("list")
def tenant_list() -> None:
    for row in with_session(service.list_tenants):
        console.print(f"{row.id}  {row.name}")


@click.group()
def key() -> None:
    """API keys (works on the configured database)."""


@key.command("create")
@click.argument("tenant_name")
@click.argument("name")
@click.option("--scopes", default=ALL_SCOPES, show_default=True, help="Comma-separated.")
@click.option("--labels", default="", help="Comma-separated matters the key holds.")
def key_create(tenant_name: str, name: str, scopes: str, labels: str) -> None:
    """Make a key; its secret is printed this once."""

    async def run(session: AsyncSession) -> service.NewKey:
        owner = await service.get_tenant(session, tenant_name)
        return await service.create_key(session, owner.id, name, scopes=split(scopes), labels=split(labels))

    click.echo(with_session(run).secret)


@key.command("list")
@click.argument("tenant_name")
def key_list(tenant_name: str) -> None:
    async def run(session: AsyncSession) -> list[Any]:
        return list(await service.list_keys(session, (await service.get_tenant(session, tenant_name)).id))

    table = Table("id", "name", "prefix", "scopes", "labels", "state")
    for row in with_session(run):
        state = "revoked" if row.revoked_at else "active"
        table.add_row(str(row.id), row.name, row.prefix, " ".join(row.scopes), " ".join(row.labels), state)
    console.print(table)


@key.command("revoke")
@click.argument("tenant_name")
@click.argument("key_id", type=click.UUID)
def key_revoke(tenant_name: str, key_id: Any) -> None:
    async def run(session: AsyncSession) -> None:
        owner = await service.get_tenant(session, tenant_name)
        await service.revoke_key(session, owner.id, key_id)

    with_session(run)
    console.print("revoked")


@click.group()
def user() -> None:
    """People who log in to the console (works on the configured database)."""


@user.command("create")
@click.argument("tenant_name")
@click.argument("email")
@click.option("--name", default="", help="Shown name (default: the address).")
@click.option("--role", default="owner", show_default=True, help="owner, admin, member or viewer.")
@click.option("--labels", default="", help="Comma-separated matters the person holds.")
@click.option("--operator", is_flag=True, help="Also runs the installation, above all tenants.")
@click.password_option(help="Asked for where it is not given.")
def user_create(tenant_name: str, email: str, name: str, role: str, labels: str, operator: bool, password: str) -> None:
    """Add a person with a password."""

    async def run(session: AsyncSession) -> None:
        owner = await service.get_tenant(session, tenant_name)
        hashed = await Passwords().hash(password)
        new = users.NewUser(email, name or email, role, split(labels), operator, hashed)
        await users.create_user(session, owner.id, new, None)

    with_session(run)
    console.print("created")


@click.group("audit")
def audit_group() -> None:
    """The audit log (works on the configured database)."""


@audit_group.command("verify")
@click.option("--expect", help="The last hash that is expected.")
def audit_verify(expect: str | None) -> None:
    """Check that no entry was changed or taken away; exit status 1 where one was."""
    chain = with_session(audit.verify)
    if expect and expect != chain.head:
        raise click.ClickException(f"The chain is whole but ends in {chain.head}.")
    click.echo(f"{chain.entries} entries, whole. Last hash: {chain.head}")
