"""/api/v1/matters: matters and who is in them. A change holds at once here, and within a second on other replicas."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Controller, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType

from app.db import Database
from app.tenants.auth import Authenticator, requires_scope
from app.tenants.matters import Matters, NewMatter
from app.tenants.models import Matter, User
from app.tenants.principal import Principal, Scope

READS = (requires_scope(Scope.DOCUMENTS_READ),)
ADMIN = (requires_scope(Scope.ADMIN),)
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Description = Annotated[str, Meta(max_length=2000)]


class MatterRequest(Struct, forbid_unknown_fields=True):
    """Who holds the matter `parent_id` holds this one as well. `label` is what documents carry."""

    label: Label
    name: Name
    description: Description = ""
    parent_id: UUID | None = None


class MatterChange(Struct, forbid_unknown_fields=True):
    """Only what is given is changed; `parent_id` null takes the matter out from below its parent."""

    name: Name | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    parent_id: UUID | UnsetType | None = UNSET
    closed: bool | UnsetType = UNSET


class MemberRequest(Struct, forbid_unknown_fields=True):
    """deny: an ethical wall, which wins over labels, inheritance and roles."""

    access: Literal["allow", "deny"]


class MatterView(Struct):
    """`held`: whether the caller may read what is filed here."""

    id: UUID
    label: str
    name: str
    description: str
    parent_id: UUID | None
    closed_at: datetime | None
    created_at: datetime
    held: bool


class MatterList(Struct):
    matters: list[MatterView]


class MemberView(Struct):
    user_id: UUID
    email: str
    name: str
    access: str


class MemberList(Struct):
    members: list[MemberView]


def view(matter: Matter, principal: Principal) -> MatterView:
    return MatterView(
        id=matter.id,
        label=matter.label,
        name=matter.name,
        description=matter.description,
        parent_id=matter.parent_id,
        closed_at=matter.closed_at,
        created_at=matter.created_at,
        held=matter.label in principal.labels,
    )


def member(user: User, access: str) -> MemberView:
    return MemberView(user.id, user.email, user.name, access)


class MatterController(Controller):
    path = "/api/v1/matters"
    tags = ("matters",)

    @get(guards=READS, summary="Matters that the caller may know of")
    async def list_matters(
        self,
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
    ) -> MatterList:
        async with database.session() as session:
            return MatterList([view(row, principal) for row in await matters.page(session, principal)])

    @post(guards=ADMIN, summary="Make a matter; its maker is in it")
    async def create_matter(
        self,
        data: JSONBody[MatterRequest],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> MatterView:
        new = NewMatter(data.label, data.name, data.description, data.parent_id)
        async with database.session() as session:
            made = await matters.create(session, principal, new)
        authenticator.forget()
        return msgspec.structs.replace(view(made, principal), held=True)

    @get("/{matter_id:uuid}", guards=READS, summary="One matter")
    async def get_matter(
        self,
        matter_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
    ) -> MatterView:
        async with database.session() as session:
            return view(await matters.get(session, principal, matter_id), principal)

    @patch("/{matter_id:uuid}", guards=ADMIN, summary="Change, move, close or open a matter")
    async def change_matter(
        self,
        matter_id: FromPath[UUID],
        data: JSONBody[MatterChange],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> MatterView:
        changes: dict[str, Any] = {
            name: value for name in data.__struct_fields__ if (value := getattr(data, name)) is not UNSET
        }
        async with database.session() as session:
            changed = await matters.change(session, principal, matter_id, changes)
        authenticator.forget()
        return view(changed, principal)

    @delete("/{matter_id:uuid}", guards=ADMIN, summary="Delete a matter under which nothing is filed")
    async def delete_matter(
        self,
        matter_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> None:
        async with database.session() as session:
            await matters.delete(session, principal, matter_id)
        authenticator.forget()

    @get("/{matter_id:uuid}/members", guards=ADMIN, summary="People who are let into a matter or kept out of it")
    async def list_members(
        self,
        matter_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
    ) -> MemberList:
        async with database.session() as session:
            return MemberList([member(*row) for row in await matters.members(session, principal, matter_id)])

    @put("/{matter_id:uuid}/members/{user_id:uuid}", guards=ADMIN, summary="Let a person in, or keep them out")
    async def put_member(
        self,
        matter_id: FromPath[UUID],
        user_id: FromPath[UUID],
        data: JSONBody[MemberRequest],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> MemberView:
        async with database.session() as session:
            user = await matters.put_member(session, principal, matter_id, user_id, data.access)
        authenticator.forget()
        return member(user, data.access)

    @delete("/{matter_id:uuid}/members/{user_id:uuid}", guards=ADMIN, summary="Neither let in nor kept out by name")
    async def remove_member(
        self,
        matter_id: FromPath[UUID],
        user_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        matters: NamedDependency[Matters],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> None:
        async with database.session() as session:
            await matters.remove_member(session, principal, matter_id, user_id)
        authenticator.forget()
