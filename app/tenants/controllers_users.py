"""/api/v1/users: the people of the caller's tenant."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType

from app.db import Database
from app.errors import Unauthenticated
from app.tenants import users
from app.tenants.auth import Authenticator, requires_scope
from app.tenants.models import User
from app.tenants.principal import Principal, Scope
from app.tenants.sessions import Logins

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Email = Annotated[str, Meta(min_length=3, max_length=254)]
Password = Annotated[str, Meta(min_length=12, max_length=256)]


class NewUserRequest(Struct, forbid_unknown_fields=True):
    email: Email
    name: Name
    role: str
    labels: list[str] = []
    password: Password | None = None
    operator: bool = False


class UserChange(Struct, forbid_unknown_fields=True):
    """Only what is given is changed; each field needs its own right."""

    name: Name | UnsetType = UNSET
    role: str | UnsetType = UNSET
    labels: list[str] | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    operator: bool | UnsetType = UNSET


class PasswordChange(Struct, forbid_unknown_fields=True):
    """`current`: needed for one's own."""

    password: Password
    current: Annotated[str, Meta(max_length=256)] = ""


class UserView(Struct):
    id: UUID
    email: str
    name: str
    role: str
    labels: Sequence[str]
    operator: bool
    has_password: bool
    single_sign_on: bool
    disabled_at: datetime | None
    last_login_at: datetime | None
    created_at: datetime


class UserList(Struct):
    users: list[UserView]


def view(user: User) -> UserView:
    return UserView(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        labels=user.labels,
        operator=user.operator,
        has_password=user.password_hash is not None,
        single_sign_on=user.subject is not None,
        disabled_at=user.disabled_at,
        last_login_at=user.last_login_at,
        created_at=user.created_at,
    )


class UserController(Controller):
    path = "/api/v1/users"
    tags = ("users",)

    @get(guards=[requires_scope(Scope.ADMIN)], summary="List the tenant's people")
    async def list_users(self, principal: NamedDependency[Principal], database: NamedDependency[Database]) -> UserList:
        async with database.session() as session:
            return UserList([view(user) for user in await users.list_users(session, principal.tenant_id)])

    @post(guards=[requires_scope(Scope.ADMIN)], summary="Add a person")
    async def create_user(
        self,
        data: JSONBody[NewUserRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        logins: NamedDependency[Logins],
    ) -> UserView:
        hashed = await logins.passwords.hash(data.password) if data.password else None
        new = users.NewUser(data.email, data.name, data.role, frozenset(data.labels), data.operator, hashed)
        async with database.session() as session:
            return view(await users.create_user(session, principal.tenant_id, new, principal))

    @patch("/{user_id:uuid}", summary="Change a person")
    async def change_user(
        self,
        user_id: FromPath[UUID],
        data: JSONBody[UserChange],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> UserView:
        changes: dict[str, Any] = msgspec.to_builtins(data)
        async with database.session() as session:
            changed = await users.change_user(session, principal.tenant_id, user_id, changes, principal)
        authenticator.forget()
        return view(changed)

    @put("/{user_id:uuid}/password", summary="Set a password; all sessions of the person end")
    async def set_password(
        self,
        user_id: FromPath[UUID],
        data: JSONBody[PasswordChange],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        logins: NamedDependency[Logins],
        authenticator: NamedDependency[Authenticator],
    ) -> UserView:
        async with database.session() as session:
            if principal.user_id == user_id:
                me = await session.get_one(User, user_id)
                if me.password_hash and not await logins.passwords.verify(data.current, me.password_hash):
                    raise Unauthenticated("The current password is wrong.")
            hashed = await logins.passwords.hash(data.password)
            changed = await users.set_password(session, principal.tenant_id, user_id, hashed, principal)
        authenticator.forget()
        return view(changed)
