# ruff: noqa: E501  (wordings are data; one per line reads better than wrapped)
"""Generated contracts: clauses with facts drawn by program, and the questions that people ask about them.

Every topic has wordings of its clause and wordings of the question; a contract is a selection of topics in numbered
sections. Names in braces are slots: parties ({A} serves, {B} pays), periods, amounts, places, dates.
"""

import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.episodes import Document, Fact


@dataclass(frozen=True)
class Topic:
    key: str
    headings: tuple[str, ...]
    clauses: tuple[str, ...]
    questions: tuple[str, ...]
    kinds: tuple[str, ...] = ()  # kinds of contract it belongs to; empty for all


def read_topics(path: Path) -> tuple[Topic, ...]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(Topic(key, **{name: tuple(values) for name, values in table.items()}) for key, table in tables.items())


TOPICS = read_topics(Path(__file__).with_name("topics.toml"))
QUESTIONS: dict[str, tuple[str, ...]] = {topic.key: topic.questions for topic in TOPICS}
TOPIC_OF_CATEGORY = {
    "Agreement Date": "agreement_date", "Effective Date": "effective_date", "Expiration Date": "term",
    "Renewal Term": "renewal", "Notice Period To Terminate Renewal": "renewal_notice", "Governing Law": "governing_law",
    "Most Favored Nation": "mfn", "Non-Compete": "non_compete", "Exclusivity": "exclusivity",
    "No-Solicit Of Customers": "nosolicit_customers", "No-Solicit Of Employees": "nosolicit_employees",
    "Non-Disparagement": "nondisparagement", "Termination For Convenience": "termination_convenience",
    "Rofr/Rofo/Rofn": "rofr", "Change Of Control": "change_of_control", "Anti-Assignment": "assignment",
    "Revenue/Profit Sharing": "revenue_share", "Price Restrictions": "price_restriction",
    "Minimum Commitment": "min_commitment", "Volume Restriction": "volume_restriction",
    "Ip Ownership Assignment": "ip_assignment", "Joint Ip Ownership": "joint_ip", "License Grant": "license_grant",
    "Non-Transferable License": "nontransferable_license", "Affiliate License-Licensee": "affiliate_license",
    "Unlimited/All-You-Can-Eat-License": "unlimited_license", "Irrevocable Or Perpetual License": "perpetual_license",
    "Source Code Escrow": "escrow", "Post-Termination Services": "effect_of_termination", "Audit Rights": "audit",
    "Uncapped Liability": "uncapped_liability", "Cap On Liability": "cap_on_liability",
    "Liquidated Damages": "liquidated_damages", "Warranty Duration": "warranty", "Insurance": "insurance",
    "Covenant Not To Sue": "covenant_not_to_sue", "Third Party Beneficiary": "third_party_beneficiary",
}  # fmt: skip

KINDS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "services": ("Services Agreement|Master Services Agreement|Consulting Agreement|Professional Services Agreement", (("Supplier", "Customer"), ("Provider", "Client"), ("Contractor", "Company"), ("Consultant", "Client"))),
    "license": ("Software License Agreement|License Agreement|Patent License Agreement", (("Licensor", "Licensee"),)),
    "nda": ("Non-Disclosure Agreement|Mutual Confidentiality Agreement", (("Discloser", "Recipient"), ("Disclosing Party", "Receiving Party"))),
    "lease": ("Lease Agreement|Office Lease|Commercial Lease", (("Landlord", "Tenant"), ("Lessor", "Lessee"))),
    "supply": ("Supply Agreement|Manufacturing and Supply Agreement|Purchase Agreement", (("Seller", "Buyer"), ("Supplier", "Purchaser"), ("Manufacturer", "Customer"))),
    "employment": ("Employment Agreement|Independent Consultant Agreement", (("Employee", "Employer"), ("Executive", "Company"), ("Consultant", "Company"))),
    "distribution": ("Distribution Agreement|Reseller Agreement", (("Supplier", "Distributor"), ("Manufacturer", "Reseller"), ("Vendor", "Distributor"))),
    "saas": ("Subscription Agreement|Cloud Services Agreement|Software as a Service Agreement", (("Provider", "Customer"), ("Vendor", "Subscriber"))),
    "dpa": (
        "Data Processing Agreement|Data Processing Addendum",
        (("Processor", "Controller"), ("Provider", "Customer")),
    ),
    "loan": ("Loan Agreement|Credit Agreement", (("Lender", "Borrower"),)),
    "jv": ("Joint Venture Agreement|Collaboration Agreement", (("First Party", "Second Party"), ("Party A", "Party B"))),
}  # fmt: skip

FILLERS = (
    "The parties shall cooperate in good faith to give effect to this Section.",
    "Further details are set out in the schedules, which form part of this Agreement.",
    "Headings are for convenience only and do not affect interpretation.",
    "Each party shall bear its own costs in connection with this Section.",
    "The rights under this Section are in addition to any other remedies available at law.",
    "{A} shall keep {B} reasonably informed of all matters that concern it.",
    "{B} shall provide {A} with the information that it reasonably needs.",
    "For the avoidance of doubt, this Section applies to Affiliates as well.",
    "This obligation is a material term of this Agreement.",
    "{A} acknowledges that it has read and understood this provision.",
    "The parties shall review this provision once a year.",
    "Any deviation requires the written approval of the {officer} of {B}.",
    "Nothing in this Section relieves {B} of its other obligations.",
    "{A} shall ensure that its staff are aware of and comply with this Section.",
    "Time is of the essence in respect of this obligation.",
)

_MONTHS_TEXT = "January February March April May June July August September October November December"
_MONTHS = _MONTHS_TEXT.split()
_STATES_TEXT = """
the State of New York | the State of Delaware | the State of California | the State of Texas | England and Wales
| the State of Illinois | Germany | the Commonwealth of Massachusetts | Switzerland | the Province of Ontario |
the State of Florida | Singapore | the State of Washington | Scotland | Ireland | France | the Netherlands | the
State of Nevada | Hong Kong | the State of Ohio | New South Wales | Sweden | the Commonwealth of Pennsylvania |
the State of Georgia | Japan
"""
_STATES = [" ".join(name.split()) for name in _STATES_TEXT.split("|")]
_CITIES_TEXT = """
New York | London | San Francisco | Chicago | Boston | Geneva | Frankfurt | Dublin | Toronto | Singapore |
Houston | Seattle | Paris | Amsterdam | Denver | Munich | Zurich | Stockholm | Atlanta | Hamburg | Austin |
Vienna | Milan | Portland | Edinburgh | Rotterdam | Philadelphia | Los Angeles | Leeds | Lyon
"""
_CITIES = [" ".join(name.split()) for name in _CITIES_TEXT.split("|")]
_NAMES_TEXT = """
Alder Birch Cobalt Dorset Ember Fairfield Granite Harbor Ivory Juniper Keystone Larkspur Meridian Northgate
Orchard Pinnacle Quarry Redwood Silverline Tamarack Umber Vantage Westbrook Yarrow Zephyr Bluewater Castlegate
Driftwood Eastvale Foxhill Glenmore Highmark Ironbridge Lakeshore Moorland Oakhurst Riverbend Stonefield
Thornbury Windmere Apex Beacon Crescent Delta Evergreen Falcon Gemini Horizon Kestrel Lumen Nimbus Orion Polaris
Quantum Sterling Titan Vertex Aurora Brightwell Copperfield
"""
_NAMES = _NAMES_TEXT.split()
_TRADES_TEXT = """
Systems Logistics Holdings Pharma Foods Energy Software Media Textiles Analytics Robotics Materials Partners
Properties Instruments Networks Biotech Capital Motors Packaging Health Shipping Design Minerals Laboratories
"""
_TRADES = _TRADES_TEXT.split()
_FORMS_TEXT = "Inc. | LLC | Ltd. | Corp. | GmbH | PLC | Limited | L.P. | AG | B.V."
_FORMS = [" ".join(name.split()) for name in _FORMS_TEXT.split("|")]
_NUMBERS_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
"""
_NUMBERS = _NUMBERS_TEXT.split()
_TENS = {
    30: "thirty",
    40: "forty",
    45: "forty-five",
    60: "sixty",
    75: "seventy-five",
    90: "ninety",
    120: "one hundred twenty",
    180: "one hundred eighty",
    24: "twenty-four",
    36: "thirty-six",
    48: "forty-eight",
    72: "seventy-two",
}


def _spelled(rng: random.Random, number: int, unit: str) -> str:
    word = _NUMBERS[number] if number <= 20 else _TENS.get(number, str(number))
    unit = unit if number == 1 else unit + "s"
    return rng.choice((f"{word} ({number}) {unit}", f"{number} {unit}", f"{word} {unit}", f"{word} ({number}) {unit}"))


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(_MONTHS), rng.randint(1996, 2034)
    return rng.choice((f"{month} {day}, {year}", f"{day} {month} {year}", f"{month} {day}, {year}"))


def _amount(rng: random.Random) -> str:
    number = rng.choice(
        (rng.randint(1, 99) * 1000, rng.randint(1, 99) * 100, rng.randint(1, 40) * 50_000, rng.randint(10, 990))
    )
    return rng.choice(
        (
            f"${number:,}",
            f"USD {number:,}",
            f"EUR {number:,}",
            f"£{number:,}",
            f"US${number:,}.00",
            f"${number:,}",
            "[***]" if rng.random() < 0.2 else f"CHF {number:,}",
        )
    )


def _percent(rng: random.Random, low: int, high: int) -> str:
    number = rng.randint(low, high)
    exact = rng.choice((f"{number}%", f"{number} percent", f"{number}.{rng.randint(1, 9)}%", f"{number} per cent"))
    return f"{_NUMBERS[number]} percent ({number}%)" if number <= 20 and rng.random() < 0.25 else exact


def _company(rng: random.Random) -> str:
    return f"{rng.choice(_NAMES)} {rng.choice(_TRADES)} {rng.choice(_FORMS)}"


SLOTS: dict[str, Callable[[random.Random], str]] = {
    "days": lambda r: _spelled(r, r.choice((5, 7, 10, 14, 15, 20, 30, 45, 60, 75, 90, 120, 180)), r.choice(("day", "day", "day", "business day", "calendar day"))),
    "months": lambda r: _spelled(r, r.choice((2, 3, 4, 6, 9, 12, 18, 24, 36)), "month"),
    "years": lambda r: _spelled(r, r.choice((1, 2, 3, 4, 5, 6, 7, 10, 15, 20)), "year"),
    "hours": lambda r: _spelled(r, r.choice((1, 2, 4, 8, 12, 24, 36, 48, 72)), "hour"),
    "amount": _amount,
    "pct": lambda r: _percent(r, 1, 15),
    "pct_big": lambda r: _percent(r, 15, 95) if r.random() < 0.7 else r.choice(("100%", "125%", "150%", "200%")),
    "uptime": lambda r: r.choice(("99%", "99.5%", "99.9%", "99.95%", "98.5%", "99.8%")),
    "state": lambda r: r.choice(_STATES),
    "state_word": lambda r: r.choice(("Delaware", "New York", "Texas", "Nevada", "California", "Swiss", "German")),
    "city": lambda r: r.choice(_CITIES),
    "date": _date,
    "date2": _date,
    "count": lambda r: f"{r.choice((50, 100, 120, 200, 250, 500, 750, 1000, 1500, 2000, 5000, 10000)):,}",
    "count_small": lambda r: str(r.randint(3, 40)),
    "one_three": lambda r: r.choice(("one", "three")),
    "nth": lambda r: r.choice(("first", "fifth", "tenth", "fifteenth", "last")),
    "arbiter": lambda r: r.choice(("American Arbitration Association", "International Chamber of Commerce", "London Court of International Arbitration", "Singapore International Arbitration Centre", "JAMS")),
    "work": lambda r: r.choice(("consulting services", "maintenance work", "design services", "translation services", "training", "engineering services", "cleaning services", "research", "accounting services", "hosting services", "marketing services", "software development")),
    "goods": lambda r: r.choice(("Products", "Goods", "Equipment", "Devices", "Components", "Machines", "Materials", "Licensed Products", "Batteries", "Instruments")),
    "product": lambda r: r.choice(("Software", "Platform", "Licensed Software", "Application", "Service", "System", "Documentation")),
    "territory": lambda r: r.choice(("the United States and Canada", "the European Union", "Japan and South Korea", "Brazil", "the European Economic Area", "the State of California", "Germany, Austria and Switzerland", "the United Kingdom", "Mexico", "North America", "Australia and New Zealand")),
    "officer": lambda r: r.choice(("General Counsel", "Chief Financial Officer", "Managing Director", "Legal Department", "Company Secretary", "Head of Procurement")),
    "person": lambda r: r.choice(("Dr. Ellen Marsh", "Mr. Tomas Reyes", "Ms. Priya Nair", "Mr. Jonas Lindqvist", "Ms. Carla Rossi", "Dr. Samuel Osei")),
    "use": lambda r: r.choice(("a general office", "a retail store", "a restaurant", "a warehouse", "a dental practice", "light manufacturing", "a fitness studio")),
    "collateral": lambda r: r.choice(("all of its accounts receivable", "its inventory and equipment", "a mortgage on the property", "a pledge of its shares", "all present and future assets")),
    "incoterm": lambda r: r.choice(("FOB", "EXW", "DDP", "CIF", "FCA", "DAP")),
}  # fmt: skip


@dataclass
class Setting:
    """The names that stay the same throughout one contract."""

    fixed: dict[str, str]

    def fill(self, rng: random.Random, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            return self.fixed.get(match[1]) or SLOTS[match[1]](rng)

        return re.sub(r"\{(\w+)\}", value, text)


def _setting(rng: random.Random) -> tuple[str, Setting]:
    kind = rng.choice(list(KINDS))
    titles, roles = KINDS[kind]
    first, second = rng.choice(roles)
    name, other = _company(rng), _company(rng)
    if rng.random() < 0.2:  # parties called by name instead of role
        first, second = name.split()[0], other.split()[0]
    title = rng.choice(titles.split("|"))
    fixed = {"A": first, "B": second, "NA": name, "NB": other, "kind_title": title, "KIND_TITLE": title.upper()}
    for slot in ("work", "goods", "product"):
        fixed[slot] = SLOTS[slot](rng)
    if "Party" not in first and rng.random() < 0.7:
        fixed["A"], fixed["B"] = (f"the {role}" if role in str(KINDS) else role for role in (first, second))
    return kind, Setting(fixed)


def _sentence(rng: random.Random, setting: Setting, wording: str) -> str:
    text = setting.fill(rng, wording)
    text = text.replace('"the ', '"')
    return text[0].upper() + text[1:]


class Writer:
    """Text that grows, and the facts in it with their places."""

    def __init__(self, rng: random.Random, setting: Setting) -> None:
        self.rng, self.setting = rng, setting
        self.text = ""
        self.facts: list[Fact] = []

    def state(self, topic: Topic) -> None:
        start = len(self.text)
        self.text += _sentence(self.rng, self.setting, self.rng.choice(topic.clauses))
        self.facts.append(Fact(topic.key, start, len(self.text)))

    def fill(self) -> None:
        self.text += _sentence(self.rng, self.setting, self.rng.choice(FILLERS))


def generate(rng: random.Random) -> Document:
    """One contract of 10 to 35 clauses; its facts are the sentences that state them."""
    kind, setting = _setting(rng)
    title = setting.fixed["kind_title"]
    writer = Writer(rng, setting)
    writer.text = (title.upper() if rng.random() < 0.7 else title) + "\n\n"
    writer.state(next(topic for topic in TOPICS if topic.key == "agreement_date"))
    writer.text += "\n\n"
    style, grouped, section, clause = rng.randrange(4), rng.random() < 0.35, 0, 0
    for topic in _choose_topics(rng, kind):
        heading = rng.choice(topic.headings)
        if not grouped or clause in (0, 3):
            section, clause = section + 1, 0
            writer.text += _heading(style, section, heading) + "\n\n"
        clause += 1
        if grouped:
            writer.text += f"{section}.{clause} {heading}. " if rng.random() < 0.7 else f"{section}.{clause} "
        elif style == 2:
            writer.text += f"{section}.1 "
        _write_clause(rng, writer, topic)
    company = rng.choice((setting.fixed["NA"], setting.fixed["NB"], f"{setting.fixed['NA']} and {setting.fixed['NB']}"))
    name = rng.choice((title, f"{title} - {company}", f"{company} {title}"))
    return Document(name, writer.text.strip(), tuple(writer.facts), frozenset(QUESTIONS) - {"agreement_date", "scope"})


def _choose_topics(rng: random.Random, kind: str) -> list[Topic]:
    common = [topic for topic in TOPICS if not topic.kinds]
    special = [topic for topic in TOPICS if kind in topic.kinds]
    chosen = rng.sample(common, rng.randint(10, 24))
    chosen += rng.sample(special, rng.randint(min(2, len(special)), len(special)))
    rng.shuffle(chosen)
    return chosen


def _write_clause(rng: random.Random, writer: Writer, topic: Topic) -> None:
    """The sentence that states the fact, with up to three others around it."""
    if rng.random() < 0.25:
        writer.fill()
        writer.text += " "
    writer.state(topic)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        writer.text += " "
        writer.fill()
    writer.text += "\n\n"


def _heading(style: int, number: int, heading: str) -> str:
    if style == 0:
        return f"{number}. {heading.upper()}"
    if style == 1:
        return f"ARTICLE {number} {heading.upper()}"
    return f"{number}. {heading}"
