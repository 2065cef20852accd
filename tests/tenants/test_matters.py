"""Matters: membership, inheritance, ethical walls, and people who try to give themselves more."""

from typing import Any
from uuid import uuid4

from tests.conftest import Site
from tests.tenants.test_people import logged_in

LEASE = "# Lease\n\n## 1. Rent\n\nThe rent is nine hundred crowns a month.\n"
Headers = dict[str, str]


async def matter(site: Site, headers: Headers, label: str, **more: Any) -> str:
    body = {"label": label, "name": label, **more}
    response = await site.client.post("/api/v1/matters", json=body, headers=headers)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def let(site: Site, headers: Headers, matter_id: str, user: Any, access: str) -> int:
    path = f"/api/v1/matters/{matter_id}/members/{user}"
    return (await site.client.put(path, json={"access": access}, headers=headers)).status_code


async def labels(site: Site, headers: Headers) -> list[str]:
    found: list[str] = (await site.client.get("/api/v1/me", headers=headers)).json()["labels"]
    return found


async def finds(site: Site, headers: Headers, query: str = "rent") -> bool:
    found = await site.client.post("/api/v1/search", json={"query": query}, headers=headers)
    assert found.status_code == 200, found.text
    return bool(found.json()["passages"])


async def test_members_hold_a_matter_and_those_below_it_until_a_wall_is_raised(site: Site) -> None:
    _, admin = await logged_in(site, "matters", "owner")
    member_id, member = await logged_in(site, "matters", "member")
    above = await matter(site, admin, "client-a")
    below = await matter(site, admin, "client-a.merger", parent_id=above)
    assert await let(site, admin, above, member_id, "allow") == 200
    assert await labels(site, member) == ["client-a", "client-a.merger"]
    job = await site.file("lease.md", LEASE, admin, labels="client-a.merger")
    assert await finds(site, member)
    assert await let(site, admin, below, member_id, "deny") == 200
    assert await labels(site, member) == ["client-a"]
    assert not await finds(site, member)
    for path in ("", "/text"):
        response = await site.client.get(f"/api/v1/documents/{job['document_id']}{path}", headers=member)
        assert response.status_code == 404
    assert (await site.client.get(f"/api/v1/jobs/{job['id']}", headers=member)).status_code == 404
    listed = (await site.client.get("/api/v1/matters", headers=member)).json()["matters"]
    assert [one["label"] for one in listed] == ["client-a"]


async def test_a_denial_wins_over_labels_inheritance_and_roles(site: Site) -> None:
    _, owner = await logged_in(site, "walls", "owner")
    given_id, given = await logged_in(site, "walls", "admin", labels=frozenset({"wall"}))
    top = await matter(site, owner, "wall-top")
    wall = await matter(site, owner, "wall-below", parent_id=top)
    assert await let(site, owner, wall, given_id, "allow") == 200
    assert await let(site, owner, top, given_id, "deny") == 200
    assert await labels(site, given) == ["wall"]  # the allowance below does not help
    assert (await site.client.get(f"/api/v1/matters/{wall}", headers=given)).status_code == 404
    assert await let(site, given, wall, given_id, "allow") == 404
    assert (await site.client.delete(f"/api/v1/matters/{top}/members/{given_id}", headers=given)).status_code == 404


async def test_nobody_gives_themselves_or_others_what_they_do_not_hold(site: Site) -> None:
    _, owner = await logged_in(site, "greedy", "owner")
    admin_id, admin = await logged_in(site, "greedy", "admin")
    other_id, _ = await logged_in(site, "greedy", "member")
    secret = await matter(site, owner, "secret")
    mine = await matter(site, admin, "mine")
    assert await labels(site, admin) == ["mine"]
    assert await let(site, admin, secret, admin_id, "allow") == 403
    assert await let(site, admin, secret, other_id, "allow") == 403
    assert await let(site, admin, secret, other_id, "deny") == 200
    lifted = await site.client.delete(f"/api/v1/matters/{secret}/members/{other_id}", headers=admin)
    assert lifted.status_code == 403
    moved = await site.client.patch(f"/api/v1/matters/{secret}", json={"parent_id": mine}, headers=admin)
    assert moved.status_code == 403  # it would have come under what she holds
    assert (await site.client.delete(f"/api/v1/matters/{secret}", headers=admin)).status_code == 403
    key = {"name": "k", "scopes": ["chat"], "labels": ["secret"]}
    assert (await site.client.post("/api/v1/keys", json=key, headers=admin)).status_code == 403
    again = await site.client.post("/api/v1/matters", json={"label": "secret", "name": "x"}, headers=admin)
    assert again.status_code == 403
    assert await labels(site, admin) == ["mine"]


async def test_a_label_in_use_makes_a_matter_only_for_who_holds_it(site: Site) -> None:
    holder = await site.headers("squat", labels="alpha")
    await site.file("lease.md", LEASE, holder, labels="alpha")
    _, admin = await logged_in(site, "squat", "owner")
    squat = await site.client.post("/api/v1/matters", json={"label": "alpha", "name": "x"}, headers=admin)
    assert squat.status_code == 403
    made = await matter(site, holder, "alpha")
    refused = await site.client.delete(f"/api/v1/matters/{made}", headers=holder)
    assert refused.status_code == 409


async def test_a_key_never_holds_more_than_the_person_who_made_it(site: Site) -> None:
    _, owner = await logged_in(site, "capped", "owner")
    admin_id, admin = await logged_in(site, "capped", "admin")
    deal = await matter(site, owner, "deal")
    assert await let(site, owner, deal, admin_id, "allow") == 200
    body = {"name": "k", "scopes": ["documents:read", "keys"], "labels": ["deal"]}
    made = await site.client.post("/api/v1/keys", json=body, headers=admin)
    key = {"authorization": f"Bearer {made.json()['secret']}"}
    grandchild = await site.client.post("/api/v1/keys", json=body | {"name": "k2"}, headers=key)
    second = {"authorization": f"Bearer {grandchild.json()['secret']}"}
    assert await labels(site, key) == await labels(site, second) == ["deal"]
    assert await let(site, owner, deal, admin_id, "deny") == 200
    assert await labels(site, key) == await labels(site, second) == []


async def test_who_is_behind_a_wall_sets_no_passwords_of_those_within(site: Site) -> None:
    _, owner = await logged_in(site, "passwords", "owner")
    admin_id, admin = await logged_in(site, "passwords", "admin")
    member_id, _ = await logged_in(site, "passwords", "member")
    deal = await matter(site, owner, "deal")
    assert await let(site, owner, deal, member_id, "allow") == 200
    path, body = f"/api/v1/users/{member_id}/password", {"password": "another horse battery"}
    assert (await site.client.put(path, json=body, headers=admin)).status_code == 200
    assert await let(site, owner, deal, admin_id, "deny") == 200
    assert (await site.client.put(path, json=body, headers=admin)).status_code == 403


async def test_matters_form_no_circle_and_close(site: Site) -> None:
    holder = await site.headers("circle")
    top = await matter(site, holder, "top")
    middle = await matter(site, holder, "middle", parent_id=top)
    low = await matter(site, holder, "low", parent_id=middle)
    for parent in (low, top):
        moved = await site.client.patch(f"/api/v1/matters/{top}", json={"parent_id": parent}, headers=holder)
        assert moved.status_code == 409
    assert (await site.client.delete(f"/api/v1/matters/{top}", headers=holder)).status_code == 409
    closed = await site.client.patch(f"/api/v1/matters/{low}", json={"closed": True}, headers=holder)
    assert closed.json()["closed_at"]
    refused = await site.client.post(
        "/api/v1/documents", files={"f": ("x.txt", b"text")}, data={"labels": "low"}, headers=holder
    )
    assert refused.status_code == 409
    opened = await site.client.patch(f"/api/v1/matters/{low}", json={"closed": False}, headers=holder)
    assert opened.json()["closed_at"] is None


async def test_another_tenants_matters_and_people_are_not_there(site: Site) -> None:
    _, ours = await logged_in(site, "ours", "owner")
    their_id, theirs = await logged_in(site, "theirs", "owner")
    own = await matter(site, ours, "shared-name")
    foreign = await matter(site, theirs, "shared-name")
    assert (await site.client.get(f"/api/v1/matters/{foreign}", headers=ours)).status_code == 404
    assert (await site.client.patch(f"/api/v1/matters/{foreign}", json={}, headers=ours)).status_code == 404
    assert (await site.client.delete(f"/api/v1/matters/{foreign}", headers=ours)).status_code == 404
    assert await let(site, ours, own, their_id, "allow") == 404
    assert await let(site, ours, foreign, uuid4(), "deny") == 404
    below = {"label": "b", "name": "b", "parent_id": foreign}
    assert (await site.client.post("/api/v1/matters", json=below, headers=ours)).status_code == 404


async def test_every_change_is_in_the_audit_log(site: Site) -> None:
    _, owner = await logged_in(site, "audited", "owner")
    member_id, _ = await logged_in(site, "audited", "member")
    made = await matter(site, owner, "m")
    await let(site, owner, made, member_id, "allow")
    await site.client.delete(f"/api/v1/matters/{made}/members/{member_id}", headers=owner)
    await site.client.patch(f"/api/v1/matters/{made}", json={"name": "n"}, headers=owner)
    await site.client.delete(f"/api/v1/matters/{made}", headers=owner)
    entries = (await site.client.get("/api/v1/audit", headers=owner)).json()["entries"]
    actions = {entry["action"] for entry in entries}
    assert {"matter.create", "matter.allow", "matter.remove", "matter.change", "matter.delete"} <= actions
