"""Which addresses the gateway connects to."""

import asyncio
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.config import TargetSettings
from app.errors import ConfigurationError, UpstreamError
from app.gateway import egress
from app.gateway.egress import Egress, GuardedResolver, GuardedTransport, check_base_url, forbidden, resolve
from app.gateway.providers.openai import OpenAIProvider
from tests.gateway import wires
from tests.gateway.upstream import answering, chat, exchange, failing, upstream

PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
SPECIAL = {
    "127.0.0.1": "loopback",
    "127.8.8.8": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "::ffff:10.0.0.1": "private",
    "fd00::1": "private",
    "169.254.169.254": "link-local",
    "::ffff:169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "100.64.0.1": "carrier-grade NAT",
    "100.127.255.254": "carrier-grade NAT",
    "2002:a00:1::1": "6to4",
    "64:ff9b::a00:1": "NAT64",
    "64:ff9b:1::1": "local NAT64",
    "2001:0:53aa::1": "Teredo",
    "::10.0.0.1": "IPv4-compatible",
    "fec0::1": "site-local",
    "0.0.0.0": "unspecified",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "reserved",
    "240.0.0.1": "reserved",
    "192.0.2.1": "private",  # documentation
    "198.18.0.1": "private",  # benchmarking
    "2001:db8::1": "private",
}


def target(url: str = "https://up.example/v1", *, allow_private: bool = False) -> TargetSettings:
    return TargetSettings(name="t", base_url=url, allow_private=allow_private, connect_seconds=1.0, timeout_seconds=1.0)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert forbidden(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(("address", "kind"), SPECIAL.items())
def test_special_addresses_are_named(address: str, kind: str) -> None:
    assert forbidden(ipaddress.ip_address(address)) == kind


@pytest.mark.parametrize("address", SPECIAL)
async def test_a_name_that_leads_to_a_special_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such address among public ones is enough."""

    async def answers(host: str, port: int) -> list[egress.Address]:
        return [ipaddress.ip_address("1.1.1.1"), ipaddress.ip_address(address)]

    monkeypatch.setattr(egress, "resolve", answers)
    with pytest.raises(UpstreamError, match="not allowed") as caught:
        await GuardedResolver(target()).resolve("up.example", 443)
    assert address not in caught.value.detail


@pytest.mark.parametrize("address", ["224.0.0.1", "ff02::1", "0.0.0.0", "255.255.255.255"])
async def test_some_are_refused_even_where_private_ones_are_allowed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers(host: str, port: int) -> list[egress.Address]:
        return [ipaddress.ip_address(address)]

    monkeypatch.setattr(egress, "resolve", answers)
    with pytest.raises(UpstreamError):
        await GuardedResolver(target(allow_private=True)).resolve("up.example", 443)


async def test_the_real_client_refuses_loopback_by_name() -> None:
    async with upstream(answering(*wires.OPENAI_TEXT)) as running:
        port = running.url.rpartition(":")[2]
        client = Egress(target(f"https://localhost:{port}/v1"), {})
        with pytest.raises(UpstreamError, match="not allowed"):
            await client.get("models")
        await client.aclose()
    assert running.connections == 0


async def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once: a second answer (DNS rebinding) is never asked for."""
    asked: list[str] = []

    async def answers(host: str, port: int) -> list[egress.Address]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(egress, "resolve", answers)
    async with upstream(failing(200, {})) as running:
        port = running.url.rpartition(":")[2]
        client = Egress(target(f"http://no-such-name.invalid:{port}", allow_private=True), {})
        status = await client.get("/")
        await client.aclose()
    assert (status, asked) == (200, ["no-such-name.invalid"])
    assert running.exchanges[0].headers["host"] == f"no-such-name.invalid:{port}"


async def test_the_next_address_is_tried_where_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(host: str, port: int) -> list[egress.Address]:
        return [ipaddress.ip_address("::1"), ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(egress, "resolve", answers)
    async with upstream(failing(200, {})) as running:
        port = running.url.rpartition(":")[2]
        client = Egress(target(f"http://up.example:{port}", allow_private=True), {})
        assert await client.get("/") == 200
        await client.aclose()


@pytest.mark.parametrize("name", ["no-such-name.invalid", "a" * 70 + ".example", "xn--\udcff"])
async def test_a_name_without_an_address_is_a_connect_error(name: str) -> None:
    with pytest.raises(OSError):
        await resolve(name, 443)


async def test_literals_are_not_resolved() -> None:
    assert [str(address) for address in await resolve("::1", 443)] == ["::1"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "http or https"),
        ("ftp://up.example", "http or https"),
        ("https://", "http or https"),
        ("https://user:secret@up.example", "no credentials"),
        ("https://up.example/v1?key=1", "no credentials"),
        ("http://up.example/v1", "plain http"),
        ("https://10.0.0.1/v1", "private address"),
        ("https://[::1]:8000/v1", "loopback address"),
        ("https://100.64.1.1", "carrier-grade NAT"),
    ],
)
def test_base_urls_that_are_refused_at_start(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_base_url(target(url))


def test_operators_may_allow_private_addresses() -> None:
    assert check_base_url(target("http://10.0.0.1:8000/v1", allow_private=True)) == "http://10.0.0.1:8000/v1/"


async def test_redirects_are_not_followed() -> None:
    with pytest.raises(UpstreamError, match="redirects"):
        await exchange(OpenAIProvider, failing(302, {}, location="http://169.254.169.254/"), chat())


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    deltas, _ = await exchange(OpenAIProvider, answering(*wires.OPENAI_TEXT), chat())
    assert deltas


async def test_addresses_in_urls_are_checked_too() -> None:
    """aiohttp asks no resolver about them."""
    guarded = GuardedTransport(target())
    with pytest.raises(UpstreamError, match="not allowed"):
        await guarded.handle_async_request(httpx.Request("GET", "https://169.254.169.254/"))


async def test_a_name_without_an_address_fails_as_a_connection_does() -> None:
    client = Egress(target("https://no-such-name.invalid"), {})
    with pytest.raises(httpx.ConnectError):
        await client.get("/")
    await client.aclose()


def certificate(name: str, folder: Path) -> Path:
    """A self-signed certificate with its key, as one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    at = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at - timedelta(days=1))
        .not_valid_after(at + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return file


async def test_tls_is_verified_against_the_name_and_not_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = certificate("up.example", tmp_path)
    trusting = ssl.create_default_context(cafile=str(file))
    presenting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    presenting.load_cert_chain(file)

    async def answers(host: str, port: int) -> list[egress.Address]:
        return [ipaddress.ip_address("127.0.0.1")]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    monkeypatch.setattr(egress, "resolve", answers)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=presenting)
    port = server.sockets[0].getsockname()[1]

    async def reached(name: str) -> int:
        client = Egress(target(f"https://{name}:{port}", allow_private=True), {})
        try:
            return await client.get("/")
        finally:
            await client.aclose()

    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        await reached("up.example")  # signed by nobody this machine trusts
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    assert await reached("up.example") == 204
    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        await reached("other.example")
    server.close()
