"""Fifty tenants with the same contract but for one word, and everybody asks everything: who sees whose word?"""

import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.errors import AppError
from app.rag.answers.opened import AnswerDelta
from app.rag.api.schemas import AnswerRequest
from app.services import Services
from app.tenants import service
from app.tenants.principal import TENANT_SCOPES
from tests.rag.conftest import make_pdf

CONTRACT = [
    ["Supply Agreement", "1. Codeword. The codeword of this agreement is {canary} and stays so."],
    ["2. Notice. The notice period is ninety days from receipt of the letter."],
]
QUESTIONS = ("What is the codeword of this agreement?", "How long is the notice period?", "codeword {canary}")
_CANARY = re.compile(r"agreement is (zq\d{3}kestrel)")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KINDS = {"search": 36, "answer": 20, "turn": 8, "history": 8, "page": 11, "foreign": 13, "revoked": 4}


@dataclass
class Tenant:
    """One firm: its canary must be in nobody else's responses."""

    number: int
    key: str
    canary: str
    document: str = ""
    conversation: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@dataclass
class Outcome:
    """`leaks`: by kind of call. `own`: responses with the tenant's own canary, without which nothing is proved."""

    calls: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    leaks: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


async def settle(services: Services, http: httpx.AsyncClient, count: int) -> list[Tenant]:
    """Make the tenants and file their contracts."""
    tenants = []
    for number in range(count):
        async with services.database.session() as session:
            owner = await service.create_tenant(session, f"firm-{number}")
            new = await service.create_key(session, owner.id, "k", scopes=frozenset(TENANT_SCOPES))
        tenants.append(Tenant(number, new.secret, f"zq{number:03d}kestrel"))
    for tenant in tenants:
        pages = [[line.format(canary=tenant.canary) for line in page] for page in CONTRACT]
        files = {"f": ("agreement.pdf", make_pdf(pages))}
        filed = (await http.post("/api/v1/documents", files=files, headers=tenant.headers)).json()["documents"][0]
        tenant.document = filed["id"]
        tenant.conversation = (await http.post("/api/v1/conversations", json={}, headers=tenant.headers)).json()["id"]
    for tenant in tenants:
        async with asyncio.timeout(120):
            path = f"/api/v1/documents/{tenant.document}"
            while (await http.get(path, headers=tenant.headers)).json()["current_version"] is None:
                await asyncio.sleep(0.05)
    return tenants


class Harness:
    """Mixed calls of all tenants at once; what comes back is searched for the canaries and ids of the others."""

    def __init__(self, services: Services, http: httpx.AsyncClient, tenants: list[Tenant], seed: int = 0) -> None:
        self._services = services
        self._http = http
        self._tenants = tenants
        self._random = random.Random(seed)
        self._documents = {tenant.document for tenant in tenants}

    async def run(self, calls: int, kinds: dict[str, int] | None = None, workers: int = 4) -> Outcome:
        weights = kinds or KINDS
        chosen = self._random.choices(list(weights), list(weights.values()), k=calls)
        outcome, queue = Outcome(), list(enumerate(chosen))

        async def work() -> None:
            while queue:
                _, kind = queue.pop()
                tenant = self._random.choice(self._tenants)
                outcome.calls[kind] += 1
                body = await getattr(self, f"_{kind}")(tenant, outcome)
                self._judge(kind, tenant, body, outcome)

        await asyncio.gather(*(work() for _ in range(workers)))
        return outcome

    def _judge(self, kind: str, tenant: Tenant, body: str, outcome: Outcome) -> None:
        outcome.own[kind] += tenant.canary in body or tenant.document in body
        # A question may name a foreign word; to repeat the question is no leak, to know the document is.
        named = set(_CANARY.findall(body)) | (set(_ID.findall(body)) & self._documents)
        outcome.leaks[kind] += bool(named - {tenant.canary, tenant.document})

    def _question(self) -> str:
        return self._random.choice(QUESTIONS).format(canary=self._random.choice(self._tenants).canary)

    async def _post(self, tenant: Tenant, path: str, body: dict[str, Any], outcome: Outcome) -> str:
        response = await self._http.post(path, json=body, headers=tenant.headers)
        if response.status_code != 200:
            outcome.errors[f"{path.rsplit('/', 1)[-1]} {response.status_code}"] += 1
        return " ".join(response.text.split())

    async def _search(self, tenant: Tenant, outcome: Outcome) -> str:
        return await self._post(tenant, "/api/v1/search", {"query": self._question(), "k": 5}, outcome)

    async def _answer(self, tenant: Tenant, outcome: Outcome) -> str:
        """The model repeats its prompt, so that the deltas hold whatever it was given."""
        body = {"question": self._question(), "model": "echo", "stream": True}
        response = await self._http.post("/api/v1/answers", json=body, headers=tenant.headers)
        if '"code":"conflict"' in response.text:
            outcome.errors["answers conflict"] += 1
        return _spoken(response.text)

    async def _turn(self, tenant: Tenant, outcome: Outcome) -> str:
        body = {"question": self._question(), "model": "echo"}
        return await self._post(tenant, f"/api/v1/conversations/{tenant.conversation}/answers", body, outcome)

    async def _history(self, tenant: Tenant, outcome: Outcome) -> str:
        form = self._random.choice(("", "/export", "/export?format=markdown"))
        path = f"/api/v1/conversations/{tenant.conversation}{form}"
        return " ".join((await self._http.get(path, headers=tenant.headers)).text.split())

    async def _page(self, tenant: Tenant, outcome: Outcome) -> str:
        """A picture of a page of somebody: 200 for one's own alone."""
        other = self._random.choice([tenant, self._random.choice(self._tenants)])
        path = f"/api/v1/documents/{other.document}/versions/1/pages/1/image.png?start=0&end=30"
        status = (await self._http.get(path, headers=tenant.headers)).status_code
        return other.document if status == 200 else ""

    async def _foreign(self, tenant: Tenant, outcome: Outcome) -> str:
        """Ids of others, wherever an id can be put."""
        other = self._random.choice([each for each in self._tenants if each is not tenant])
        named = {"query": "codeword", "documents": [other.document]}
        ways = [
            ("GET", f"/api/v1/documents/{other.document}/text", None),
            ("GET", f"/api/v1/documents/{other.document}", None),
            ("PUT", f"/api/v1/documents/{other.document}/labels", {"labels": []}),
            ("DELETE", f"/api/v1/documents/{other.document}", None),
            ("GET", f"/api/v1/conversations/{other.conversation}", None),
            ("POST", f"/api/v1/conversations/{other.conversation}/answers", {"question": "And the codeword?"}),
            ("POST", "/api/v1/search", named),
            ("POST", "/api/v1/answers", {"question": "codeword?", "documents": [other.document], "model": "echo"}),
            ("POST", "/api/v1/evaluation/cases", {"question": "x", "document_id": other.document}),
        ]
        method, path, body = self._random.choice(ways)
        response = await self._http.request(method, path, json=body, headers=tenant.headers)
        return response.text.replace(other.document, "") if response.status_code == 404 else other.document

    async def _revoked(self, tenant: Tenant, outcome: Outcome) -> str:
        """A key that is revoked while its answer streams: not a word more. Without sockets, whose buffers hold words
        that were sent before.
        """
        async with self._services.database.session() as session:
            owner = await service.get_tenant(session, f"firm-{tenant.number}")
            name = f"r{self._random.getrandbits(64)}"
            new = await service.create_key(session, owner.id, name, scopes=frozenset(TENANT_SCOPES))
            principal = await service.find_principal(session, new.secret)
        assert principal is not None
        request = AnswerRequest(question=self._question(), model="echo")
        opened = await self._services.library.answers.open(principal, request)
        events, said = opened.events(), []
        for _ in range(self._random.randrange(1, 6)):
            event = await anext(events)
            said.append(event.text if isinstance(event, AnswerDelta) else "")
        path = f"/api/v1/keys/{new.key.id}"
        assert (await self._http.delete(path, headers=tenant.headers)).status_code == 200
        try:
            async for _ in events:
                outcome.leaks["revoked"] += 1
        except AppError:
            outcome.own["ended"] += 1  # as it should
        return "".join(said)


def _spoken(frames: str) -> str:
    """The text of a stream's deltas and the rest as it is."""
    said, rest = [], []
    for line in frames.split("\n"):
        if line.startswith('data: {"text":'):
            said.append(json.loads(line[6:])["text"])
        else:
            rest.append(line)
    return " ".join("".join(said).split()) + " " + " ".join(rest)
