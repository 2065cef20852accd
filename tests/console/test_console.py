"""The console's pages come from memory, compressed, under a policy that keeps everything at home."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import demo, migrate
from app.asgi import create_app
from app.config import REPOSITORY
from app.console import controllers
from app.console.controllers import STATIC
from app.db import Database, owned
from app.tenants import service
from app.tenants.models import User
from tests.conftest import Site, fake_settings

WEB = REPOSITORY / "app" / "console" / "web"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small built console in a folder of its own."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>Precedent</title>")
    (tmp_path / "assets" / "index-abc.js").write_text("export {};" * 100)
    (tmp_path / "assets" / "inter.woff2").write_bytes(b"wOF2 font")
    monkeypatch.setattr(controllers, "STATIC", tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/requests", "/console/documents/a-b-c"])
async def test_every_address_below_console_is_the_page(path: str, site: Site, built: Path) -> None:
    answer = await site.client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "<title>Precedent</title>" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-cache"


async def test_assets_are_compressed_and_kept_for_good(site: Site, built: Path) -> None:
    url, plain = "/console/assets/index-abc.js", b"export {};" * 100
    packed = await site.client.get(url, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.content == plain
    assert int(packed.headers["content-length"]) == len(gzip.compress(plain, 9, mtime=0))
    assert "immutable" in packed.headers["cache-control"]
    bare = await site.client.get(url, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in bare.headers and bare.content == plain
    font = await site.client.get("/console/assets/inter.woff2")
    assert font.headers["content-type"] == "font/woff2" and "content-encoding" not in font.headers


@pytest.mark.parametrize("name", ["missing.js", "index.html", "..%2findex.html", "..%2f..%2fcontrollers.py"])
async def test_only_assets_are_assets(name: str, site: Site, built: Path) -> None:
    answer = await site.client.get(f"/console/assets/{name}")
    # What is no asset's name is some address of the page, and never another file.
    assert answer.status_code == 404 or "<title>Precedent</title>" in answer.text


async def test_without_a_built_console_it_says_so(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "STATIC", tmp_path)
    answer = await site.client.get("/console")
    assert answer.status_code == 503 and "SKIP_CONSOLE" in answer.text
    assert (await site.client.get("/console/assets/index-abc.js")).status_code == 404


def test_what_is_built_names_nothing_outside() -> None:
    page = (STATIC / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert addresses and all(address.startswith("/console/assets/") for address in addresses)
    assert "<script>" not in page and "<style" not in page


def test_the_types_are_those_of_the_api(tmp_path: Path) -> None:
    """After a change of the API: `make types`."""
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(create_app(fake_settings(tmp_path)).openapi_schema.to_schema()))
    made = tmp_path / "api.gen.ts"
    subprocess.run([sys.executable, "hatch_build.py", "types", str(schema), str(made)], cwd=REPOSITORY, check=True)
    assert made.read_text() == (WEB / "src" / "api.gen.ts").read_text()


async def test_make_run_makes_one_owner_and_a_link_each_time(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path)
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, demo.TENANT)
    tokens = {await demo._sign_in_link(settings) for _ in range(2)}
    async with database.session() as session:
        people = list(await session.scalars(owned(User, tenant.id)))
    await database.close()
    assert len(tokens) == 2
    assert [(user.email, user.role, user.operator, user.password_hash) for user in people] == [
        (demo.OWNER, "owner", True, None)
    ]
