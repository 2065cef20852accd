"""What contracts say about themselves, and choosing documents by it."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from app.rag.documents import facts
from app.rag.documents.dates import dates
from app.rag.documents.facts import Fact, law_key
from app.rag.documents.parties import party_key
from app.rag.parsing import parse
from tests.conftest import Site

CONTRACTS = Path(__file__).parents[2] / "demo" / "contracts"
# Read by a person. Only what is listed may be found, and all of it must be.
EXPECTED = {
    "Brightwater": (["Brightwater Retail AB", "Oakhelm Payroll Oy"], "sweden"),
    "Copperline": (["Copperline Properties LLC", "Fernwick Audio, Inc."], "oregon"),
    "Harbor": (["Tidewell Harbor Authority", "Lumenfold Analytics B.V."], "netherlands"),
    "Meridian": (["Kestrel Mutual Savings Bank", "Meridian Kelp Farms Incorporated"], "nova scotia"),
    "Northgate": (["Northgate Rail Signals plc", "Ms Ingrid Falkenrath"], "england and wales"),
    "Ostrava": (["Vitkov Foundry a.s.", "Brannigan Pump Works Ltd"], "austria"),
    "Pellam": (["Pellam Biosystems Corporation", "Ardenne Diagnostics SAS"], "massachusetts"),
    "Quillmark": (["Quillmark Software GmbH", "Abernathy & Rowe LLP"], "germany"),
    "Sablefin": (["Sablefin Outdoor Co.", "Taranaki Trail Supplies Limited"], "minnesota"),
    "Solenne": (["Solenne Optics SA", "Kodama Precision KK"], "switzerland"),
    "Tallgrass": (["Tallgrass Wind Cooperative", "Corvane Energy Partners LP"], "kansas"),
    "Wrenfield": (["Wrenfield County Hospital Trust", "Dr Amadou Castellane"], "ireland"),
}


def of_kind(found: Sequence[Fact], kind: str) -> list[Fact]:
    return [fact for fact in found if fact.kind == kind]


@pytest.mark.parametrize("name", EXPECTED)
def test_parties_and_law_of_the_demo_contracts(name: str) -> None:
    path = next(CONTRACTS.glob(f"{name}*"))
    text = parse(path.read_bytes(), path.name).text
    found = facts.facts(text)
    named, law = EXPECTED[name]
    parties = [fact.value for fact in of_kind(found, facts.PARTY)]
    if name != "Quillmark":  # "the customer named on the order form, here …": no rule for that
        assert parties == named
    assert [fact.key for fact in of_kind(found, facts.LAW)] == [law]
    assert len(of_kind(found, facts.TYPE)) == 1
    for fact in found:
        shown = text[fact.start : fact.end]
        if fact.kind in (facts.EFFECTIVE, facts.AGREED, facts.EXPIRY):
            assert [span.day.isoformat() for span in dates(shown)] == [fact.value]
        else:
            assert " ".join(shown.split()).lower() == fact.value.lower()


def test_dates_of_a_whole_agreement() -> None:
    text = (
        "SUPPLY AGREEMENT\nThis Supply Agreement is entered into as of January 5, 2023 between Alder Inc. and Birch "
        'LLC, and is effective as of the 1st day of February, 2023 (the "Effective Date").\n'
        "2. Term. This Agreement continues in force until 31 January 2026. Notices of 3 March 2024 are void."
    )
    found = {fact.kind: fact.value for fact in facts.facts(text) if fact.kind.endswith("date")}
    assert found == {
        facts.AGREED: "2023-01-05",
        facts.EFFECTIVE: "2023-02-01",
        facts.EXPIRY: "2026-01-31",
    }


def test_text_that_is_no_contract_says_nothing_of_itself() -> None:
    text = "Minutes. We spoke of weather between 9 and 10. Paris in 1999 was cold, as the laws of physics demand."
    assert facts.facts(text) == []


def test_definitions_are_found_once_each() -> None:
    text = '"Goods" means pumps. "Price" shall mean the sum (the "Sum"). "Goods" means pumps. A "word" is no term.'
    assert [fact.value for fact in of_kind(facts.facts(text), facts.DEFINITION)] == ["Goods", "Price", "Sum"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on 1 June 2024.", date(2024, 6, 1)),
        ("June 1st, 2024", date(2024, 6, 1)),
        ("the 1st day of June, 2024", date(2024, 6, 1)),
        ("2024-06-01", date(2024, 6, 1)),
        ("6/1/2024", date(2024, 6, 1)),
        ("31/12/2024", date(2024, 12, 31)),
        ("30 February 2024", None),
        ("section 12/13/1200", None),
    ],
)
def test_dates_as_contracts_write_them(text: str, expected: date | None) -> None:
    assert [span.day for span in dates(text)] == ([expected] if expected else [])


def test_names_and_places_are_compared_without_form() -> None:
    assert party_key("Fernwick Audio, Inc.") == party_key("FERNWICK AUDIO LLC") == "fernwick audio"
    assert law_key("English") == law_key("England")
    assert law_key("the State of New York") == "new york"


ALDER = """# SUPPLY AGREEMENT

This Supply Agreement is made as of January 5, 2023 between Alder Mills Inc. and Birch Castings LLC.

## 1. Term

This Agreement continues in force until 31 January 2026.

## 2. Law

This Agreement is governed by the laws of the State of Oregon.
"""
CEDAR = ALDER.replace("Alder Mills Inc.", "Cedar Works Ltd").replace("Oregon", "Kansas").replace("2023", "2021")


async def listed(site: Site, headers: dict[str, str], **where: Any) -> set[str]:
    response = await site.client.get("/api/v1/documents", params=where, headers=headers)
    assert response.status_code == 200, response.text
    return {document["metadata"]["parties"][0]["value"] for document in response.json()["documents"]}


async def test_documents_are_listed_and_searched_by_what_they_say(site: Site) -> None:
    headers = await site.headers("facts")
    for name, text in (("a.md", ALDER), ("c.md", CEDAR)):
        await site.file(name, text, headers)
    both = {"Alder Mills Inc.", "Cedar Works Ltd"}
    assert await listed(site, headers) == both
    for where, expected in (
        ({"party": "alder mills"}, {"Alder Mills Inc."}),
        ({"party": ["birch", "cedar"]}, {"Cedar Works Ltd"}),
        ({"governing_law": "State of Oregon"}, {"Alder Mills Inc."}),
        ({"document_type": "supply"}, both),
        ({"effective_from": "2022-01-01"}, {"Alder Mills Inc."}),
        ({"effective_to": "2022-01-01"}, {"Cedar Works Ltd"}),
        ({"expires_from": "2026-01-01", "expires_to": "2026-12-31"}, both),
        ({"party": "nobody"}, set()),
        ({"party": "100%"}, set()),
    ):
        assert await listed(site, headers, **where) == expected, where
    query: dict[str, Any] = {"query": "How long does it run?", "where": {"governing_law": "Kansas"}}
    found = (await site.client.post("/api/v1/search", json=query, headers=headers)).json()["passages"]
    assert found
    assert {passage["document"] for passage in found} == {"SUPPLY AGREEMENT"}
    assert any("Cedar Works" in passage["text"] for passage in found)
    assert not any("Alder Mills" in passage["text"] for passage in found)
    query["where"] = {"parties": ["nobody"]}
    assert (await site.client.post("/api/v1/search", json=query, headers=headers)).json()["passages"] == []
    stranger = await site.headers("facts-other")
    assert await listed(site, stranger, party="alder mills") == set()


async def test_metadata_is_that_of_the_current_version(site: Site) -> None:
    headers = await site.headers("facts-versions")
    document_id = (await site.file("a.md", ALDER, headers))["document_id"]
    put = await site.client.put(
        f"/api/v1/documents/{document_id}", files={"f": ("a.md", CEDAR.encode())}, headers=headers
    )
    await site.job(put.json()["job_id"], headers)
    metadata = (await site.client.get(f"/api/v1/documents/{document_id}", headers=headers)).json()["metadata"]
    assert [party["value"] for party in metadata["parties"]] == ["Cedar Works Ltd", "Birch Castings LLC"]
    assert metadata["governing_law"]["value"] == "Kansas"
    text = (await site.client.get(f"/api/v1/documents/{document_id}/text", headers=headers)).json()["text"]
    law = metadata["governing_law"]
    assert text[law["start"] : law["end"]] == "Kansas"
    assert await listed(site, headers, party="alder mills") == set()


async def test_a_search_explains_itself_and_hides_what_the_caller_may_not_see(site: Site) -> None:
    inside = await site.headers("explained", labels="secret")
    outside = await site.headers("explained")
    await site.file("a.md", ALDER, inside)
    hidden = (await site.file("c.md", CEDAR, inside, labels="secret"))["document_id"]
    query = {"query": "Consider the agreement of Cedar Works; which law governs?", "explain": True}
    seen = (await site.client.post("/api/v1/search", json=query, headers=inside)).json()
    assert hidden in {one["document_id"] for one in seen["explain"]["routed"]}
    assert seen["explain"]["question"] == "which law governs?"
    assert seen["explain"]["candidates"] >= len(seen["passages"]) > 0
    assert {"dense", "lexical", "fused", "neighbour", "route"} <= seen["passages"][0]["scores"].keys()
    unseen = await site.client.post("/api/v1/search", json=query, headers=outside)
    assert hidden not in unseen.text
    assert "Cedar Works Ltd" not in unseen.text
    plain = (await site.client.post("/api/v1/search", json={"query": "law"}, headers=inside)).json()
    assert plain["explain"] is None
