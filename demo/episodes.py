"""Documents -> passages -> episodes: what the demo model is asked, and what it should answer.

One `Episode` is a set of numbered passages and several questions about them. The questions become *branches* of one
sequence: each sees the passages and itself, never another branch, and its positions continue where the passages end,
so every branch is exactly a production request while the passages are read once (see `pack`).
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from torch import Tensor

from app.rag.answers.prompts import HEADER, REFUSAL, render_passage, render_question
from app.rag.documents.chunking import chunk
from app.rag.documents.structure import sentence_starts

# (before, after) the citation: `The contract states [2]: "..."`. The number stands before the quote.
LEAD_INS = (("The contract states", ""), ("Passage", " says"), ("According to", ""), ("See", ""))
IGNORE = -100
CHOICE_WEIGHT = 5.0  # of the tokens that choose: refuse or answer, which passage, which sentence, where to stop
COPY_WEIGHT, OTHER_WEIGHT = 1.0, 0.5  # of the tokens that continue a quote, and of the fixed words around it
DIGIT_WEIGHT = 4.0  # of digits in a quote: the hardest to copy (ten of them, often repeated) and what readers ask for
OTHER_SHARE = 0.5  # of the fixed words that are trained at all: they are easy, and every one costs a row of logits


@dataclass(frozen=True)
class Fact:
    """text[start:end] of a document answers questions about `topic`."""

    topic: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A contract; `complete` names the topics whose absence from `facts` means absence from the contract."""

    title: str
    text: str
    facts: tuple[Fact, ...] = ()
    complete: frozenset[str] = frozenset()


@dataclass
class Passage:
    section: str
    text: str
    sentences: list[str]
    gold: dict[str, list[int]] = field(default_factory=dict)  # topic -> indices into sentences
    words: frozenset[str] = frozenset()


@dataclass
class Contract:
    title: str
    passages: list[Passage]
    topics: dict[str, list[int]]  # topic -> indices into passages
    absent: list[str]  # topics that no passage answers


@dataclass(frozen=True)
class Question:
    """A question on an episode; `passage` counts from 0, None where the right answer is the refusal."""

    text: str
    passage: int | None
    quote: str = ""
    topic: str = ""  # of a natural question


@dataclass(frozen=True)
class Episode:
    title: str
    passages: tuple[tuple[str, str], ...]  # (section, text)
    questions: tuple[Question, ...]


# ---------------------------------------------------------------- contracts

_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]{2,}")
_LABEL = re.compile(r"^(?:\(?(?:\d{1,2}(?:\.\d{1,2})*|[a-zA-Z]|[ivx]{1,4})[.)]+|\d{1,2}(?:\.\d{1,2})+)\s+")
_STOP_WORDS = """
the and for any all such shall may will with this that from not are was has have had its his her their other
under upon agreement party parties which each either hereby hereof herein hereunder thereof been being would who
whom into than then there these those between out per our your you they them one two and/or including without
"""
_STOP = frozenset(_STOP_WORDS.split())


def stems(text: str) -> frozenset[str]:
    """Content words, lower case, cut to six letters: enough to see that two texts speak of the same thing."""
    return frozenset(word.lower()[:6] for word in _WORD.findall(text) if word.lower() not in _STOP)


def tidy(text: str) -> str:
    """Runs of blanks to one space, runs of empty lines to one: what a document parser hands on."""
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t\xa0]+", " ", text)).strip()


def cut(document: Document, max_chars: int) -> Contract:
    """Chunk a document as the product does and carry its facts over to sentences."""
    passages: list[Passage] = []
    topics: dict[str, list[int]] = {}
    for piece in chunk(document.text, max_chars=max_chars):
        raw = document.text[piece.start : piece.end]
        passage = Passage(" > ".join(piece.section), raw.strip(), [])
        for start, end in _sentences(raw):
            offset = piece.start + start
            for fact in document.facts:
                overlap = min(fact.end, piece.start + end) - max(fact.start, offset)
                if overlap >= 0.5 * min(fact.end - fact.start, end - start):
                    passage.gold.setdefault(fact.topic, []).append(len(passage.sentences))
            passage.sentences.append(raw[start:end])
        passage.words = stems(passage.text)
        if passage.sentences:
            for topic in passage.gold:
                topics.setdefault(topic, []).append(len(passages))
            passages.append(passage)
    told = {fact.topic for fact in document.facts}
    return Contract(document.title, passages, topics, sorted(document.complete - told))


def _sentences(raw: str) -> list[tuple[int, int]]:
    """Spans of sentences worth quoting: without clause number and without the heading before them."""
    spans = []
    borders = sorted({0, *sentence_starts(raw), *(m.end() for m in re.finditer(r"\n\s*(?=\S)", raw)), len(raw)})
    for start, end in pairwise(borders):
        text = raw[start:end].rstrip()
        label = _LABEL.match(text)
        skip = label.end() if label else 0
        if len(text) - skip >= 40 and " " in text[skip:]:
            spans.append((start + skip, start + len(text)))
    return spans


# ---------------------------------------------------------------- questions

CLOZE = (
    "{words}", "{words}", "{words}?", "What does the contract say about {words}?", "What about {words}?",
    "Which clause deals with {words}?", "What is said about {words}?", "Where are {words} mentioned?",
)  # fmt: skip
HEADING = (
    "What does the contract say about {words}?", "What is the rule on {words}?", "{words}", "{words}?",
    "What are the terms on {words}?", "Which clause covers {words}?", "What does the agreement provide on {words}?",
)  # fmt: skip


def cloze_question(rng: random.Random, sentence: str, easy: float) -> str | None:
    """Ask for a sentence by a phrase or by two to five of its content words; `easy` favours phrases and many words."""
    words = [match for match in _WORD.finditer(sentence) if match[0].lower() not in _STOP]
    if len(words) < 4:
        return None
    if rng.random() < easy:
        first = rng.randrange(len(words) - 2)
        phrase = sentence[words[first].start() : words[first + 2].end()]
        if len(phrase) > 60:
            return None
    else:
        count = min(len(words), rng.randint(2, 5))
        chosen = rng.sample(words, count)
        if rng.random() < 0.5:
            chosen.sort(key=lambda match: match.start())
        phrase = " ".join(match[0] for match in chosen)
    if rng.random() < 0.6:
        phrase = phrase.lower()
    return rng.choice(CLOZE).format(words=phrase)


def heading_question(rng: random.Random, section: str) -> str | None:
    """Ask by the innermost heading: real contracts teach how a subject and its clause belong together."""
    last = re.sub(r"^(?:ARTICLE|Article|Section|SECTION)?\s*[\dIVXLC.()]*\s+", "", section.split(" > ")[-1])
    last = last.strip(" .:;")
    words = _WORD.findall(last)
    if not 1 <= len(words) <= 6 or len(last) > 60 or not stems(last):
        return None
    return rng.choice(HEADING).format(words=last.lower() if rng.random() < 0.8 else last)


AFTER = (
    " under this agreement",
    " under the contract",
    " in this contract",
    " according to the agreement",
    " in the {title}",
)
BEFORE = (
    "Tell me: ",
    "Please quote the clause: ",
    "In this contract, ",
    "Under the agreement, ",
    "In the {title}, ",
    "Under the {title}, ",
)


def dress(rng: random.Random, question: str, title: str) -> str:
    """The same question as different people type it: bare, with the document's name, without capital or mark."""
    style = rng.random()
    if style < 0.2 and not re.search("agreement|contract", question):
        question = question.rstrip("?") + rng.choice(AFTER).format(title=title) + "?"
    elif style < 0.35:
        question = rng.choice(BEFORE).format(title=title) + question[0].lower() + question[1:]
    elif style < 0.42:
        question = question.lower().rstrip("?")
    return question


# ---------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Recipe:
    """How hard the episodes of a phase are."""

    passages: tuple[int, int]  # how many, from and to
    sentences: int  # of a passage that are kept, counted from a random one; 0 keeps all
    branches: int
    refusals: float
    natural: float  # share of natural questions where the contract has facts
    easy: float  # share of verbatim phrases among the cloze questions
    longest: int = 10_000  # characters of a kept sentence
    bare: float = 0.25  # share of episodes without section headings
    full_quote: float = 0.6  # share of answers trained to their end; the others stop after a few words of quote


RANKS = (0.57, 0.16, 0.09, 0.09, 0.09)  # where retrieval puts the passage that answers


def place(rng: random.Random, gold: Passage, others: list[Passage]) -> list[Passage]:
    """Put the gold passage at a rank that retrieval would give it, the rest at random."""
    rng.shuffle(others)
    count = len(others) + 1
    rank = rng.choices(range(count), weights=[RANKS[min(i, 4)] for i in range(count)])[0]
    return [*others[:rank], gold, *others[rank:]]


def shorten(rng: random.Random, passage: Passage, keep: int, must: Sequence[int]) -> Passage:
    """A passage of at most `keep` sentences around the ones it must contain."""
    if not keep or len(passage.sentences) <= keep:
        return passage
    anchor = rng.choice(list(must)) if must else rng.randrange(len(passage.sentences))
    first = max(0, min(anchor - rng.randrange(keep), len(passage.sentences) - keep))
    sentences = passage.sentences[first : first + keep]
    start = passage.text.find(sentences[0])
    end = passage.text.find(sentences[-1], start) + len(sentences[-1])
    text = passage.text[start:end]
    gold = {t: [i - first for i in at if first <= i < first + keep] for t, at in passage.gold.items()}
    return Passage(passage.section, text, sentences, {t: at for t, at in gold.items() if at}, stems(text))


def _likeness(one: Passage, other: Passage) -> float:
    return len(one.words & other.words) / (8 + len(one.words))


class EpisodeMaker:
    """Draws episodes from contracts; all randomness comes from the generator handed in."""

    def __init__(self, contracts: Sequence[Contract], questions: dict[str, tuple[str, ...]]) -> None:
        self.contracts = [contract for contract in contracts if len(contract.passages) >= 6]
        self.factual = [contract for contract in self.contracts if contract.topics]
        self.questions = questions

    def draw(self, rng: random.Random, recipe: Recipe) -> Episode | None:
        natural = rng.random() < recipe.natural
        contract = rng.choice(self.factual if natural and self.factual else self.contracts)
        count = rng.randint(*recipe.passages)
        topic = rng.choice(list(contract.topics)) if natural and contract.topics else None
        passages = self._passages(rng, contract, count, topic, recipe.sentences)
        title = title_of(rng, contract.title)
        if len(passages) < 2 or any(len(s) > recipe.longest for p in passages for s in p.sentences):
            return None
        if rng.random() < recipe.bare:
            passages = [Passage("", p.text, p.sentences, p.gold, p.words) for p in passages]
        asked = [
            self._question(rng, contract, passages, recipe, natural, topic if i == 0 else None, title)
            for i in range(recipe.branches)
        ]
        questions = tuple(dict.fromkeys(question for question in asked if question is not None))
        if not questions:
            return None
        return Episode(title, tuple((p.section, p.text) for p in passages), questions)

    def _passages(
        self, rng: random.Random, contract: Contract, count: int, topic: str | None, keep: int
    ) -> list[Passage]:
        """Gold first where there is a topic, then neighbours in meaning (what a retriever also finds) and others."""
        gold_at = rng.choice(contract.topics[topic] if topic else range(len(contract.passages)))
        gold = contract.passages[gold_at]
        pool = rng.sample(range(len(contract.passages)), min(len(contract.passages), 24))
        pool = [i for i in pool if contract.passages[i].text != gold.text and topic not in contract.passages[i].gold]
        near = sorted(pool, key=lambda i: -_likeness(contract.passages[i], gold))
        close = near[: rng.randint(0, count - 1)]
        far = [i for i in pool if i not in close]
        others = (close + rng.sample(far, len(far)))[: count - 1]
        short = shorten(rng, gold, keep, gold.gold.get(topic or "", ()))
        return place(rng, short, [shorten(rng, contract.passages[i], keep, ()) for i in others])

    def _question(
        self, rng: random.Random, contract: Contract, passages: list[Passage], recipe: Recipe, natural: bool,
        topic: str | None, title: str,
    ) -> Question | None:  # fmt: skip
        if rng.random() < recipe.refusals:
            return self._unanswerable(rng, contract, passages, natural, title)
        if natural and rng.random() < 0.75:
            topics = sorted({t for p in passages for t in p.gold})
            if topic or topics:
                return self._natural(rng, passages, topic or rng.choice(topics), title)
        at = rng.choices(range(len(passages)), weights=[RANKS[min(i, 4)] + 0.25 for i in range(len(passages))])[0]
        if rng.random() < 0.2:
            section = passages[at].section
            text = heading_question(rng, section)
            opens = passages[at].text.startswith(section.split(" > ")[-1].split(" ")[0] or "-")
            if text and opens and sum(p.section == section for p in passages) == 1:
                return Question(text, at, passages[at].sentences[0])
        sentence = rng.choice(passages[at].sentences)
        text = cloze_question(rng, sentence, recipe.easy)
        if text is None or not self._unambiguous(text, sentence, passages):
            return None
        return Question(text, at, sentence)

    @staticmethod
    def _unambiguous(text: str, sentence: str, passages: Sequence[Passage]) -> bool:
        asked = stems(text)
        best = len(asked & stems(sentence))
        rivals = (s for p in passages for s in p.sentences if s != sentence)
        return all(len(asked & stems(s)) < best for s in rivals) and sum(sentence in p.text for p in passages) == 1

    def _natural(self, rng: random.Random, passages: Sequence[Passage], topic: str, title: str) -> Question | None:
        """None where two passages answer: the choice between them would be noise."""
        found = [i for i, p in enumerate(passages) if topic in p.gold]
        if len(found) != 1:
            return None
        quote = passages[found[0]].sentences[passages[found[0]].gold[topic][0]]
        return Question(dress(rng, rng.choice(self.questions[topic]), title), found[0], quote, topic)

    def _unanswerable(
        self, rng: random.Random, contract: Contract, passages: Sequence[Passage], natural: bool, title: str
    ) -> Question | None:
        """A topic that the contract knows elsewhere or not at all; or words of a passage that is not shown."""
        shown = {t for p in passages for t in p.gold}
        if contract.topics and (natural or rng.random() < 0.5):
            missing = [t for t in (*contract.topics, *contract.absent) if t not in shown]
            if not missing:
                return None
            topic = rng.choice(missing)
            return Question(dress(rng, rng.choice(self.questions[topic]), title), None, topic=topic)
        stranger = rng.choice(rng.choice(self.contracts).passages)
        text = cloze_question(rng, rng.choice(stranger.sentences), 0.0)
        known = frozenset().union(*(p.words for p in passages))
        return Question(text, None) if text and len(stems(text) & known) <= 1 else None


def title_of(rng: random.Random, title: str) -> str:
    """A contract is known by its long name, its short name or its file name."""
    short = title if len(title) <= 60 else title[:60].rsplit(" ", 1)[0]
    return rng.choice((short, short, short.title(), short.lower().replace(" ", "-") + ".md", "Agreement"))


# ---------------------------------------------------------------- tokens


@dataclass
class Row:
    """One packed episode: the arrays of `pack`, and where choices are made."""

    tokens: list[int]
    positions: list[int]
    branch: list[int]  # 0 for system, passages and question-free text; 1.. for each question
    targets: list[int]
    weights: list[float]
    kinds: list[int]  # what the target is: OTHER, DECIDE, ...
    asked: list[tuple[int, int, int]]  # (position in the question, from, to): the sentence that answers
    sentence: list[tuple[int, int, int]]  # the same for the positions that are about to choose
    first: list[tuple[int, int]]  # (position that should look, token to copy) throughout the quote
    passage_of: list[int]  # number of the passage that a token belongs to, 0 elsewhere


OTHER, DECIDE, CITE, FIRST, STOP_HERE, COPY, REFUSE = range(7)
WEIGHTS = {OTHER: OTHER_WEIGHT, COPY: COPY_WEIGHT}


class Encoder:
    """Episodes -> token sequences in the exact production format."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.user, self.assistant, self.end, self.system = map(
            self._special, ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
        )
        self.digits = {token for text in "0123456789" for token in (*self.ids(text), *self.ids(text + " "))}
        self.header = self.ids(HEADER)
        self.refusal = self.ids(REFUSAL)

    def _special(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}")
        return int(found)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def request(self, question: str) -> list[int]:
        """What follows the passages: the question, and the turn handed to the assistant."""
        return [*self.ids(render_question(question)), self.end, self.assistant]

    def system_ids(self, text: str) -> list[int]:
        return [self.system, *self.ids(text), self.end]

    def pack(self, rng: random.Random, episode: Episode, system: list[int], start: int, full_quote: float) -> Row:
        """`system` precedes the passages in the sequence itself (a stub); `start` counts tokens of a cached prefix."""
        out = Row([], [], [], [], [], [], [], [], [], [])
        shared = [*system, self.user, *self.header]
        owner = [0] * len(shared)
        texts: list[tuple[int, list[tuple[int, int]]]] = []
        for number, (section, text) in enumerate(episode.passages, start=1):
            rendered = render_passage(number, episode.title, section, text)
            encoded = self.tokenizer.encode(rendered, add_special_tokens=False)
            texts.append((len(shared), encoded.offsets))
            shared += encoded.ids
            owner += [number] * len(encoded.ids)
        self._append(out, shared, start, 0, owner)
        base = start + len(shared)
        for index, question in enumerate(episode.questions, start=1):
            self._branch(rng, out, episode, question, index, base, texts, full_quote)
        return out

    @staticmethod
    def _append(out: Row, ids: list[int], start: int, branch: int, owner: list[int] | None = None) -> None:
        out.tokens += ids
        out.positions += range(start, start + len(ids))
        out.branch += [branch] * len(ids)
        out.targets += [IGNORE] * len(ids)
        out.weights += [0.0] * len(ids)
        out.kinds += [OTHER] * len(ids)
        out.passage_of += owner or [0] * len(ids)

    def _branch(
        self, rng: random.Random, out: Row, episode: Episode, question: Question, index: int, base: int,
        texts: list[tuple[int, list[tuple[int, int]]]], full_quote: float,
    ) -> None:  # fmt: skip
        asked = self.request(question.text)
        answer, kinds = self._answer(rng, question, full_quote)
        at = len(out.tokens)
        self._append(out, [*asked, *answer[:-1]], base, index)
        first = at + len(asked) - 1  # the assistant token, whose target is the first token of the answer
        for offset, (token, kind) in enumerate(zip(answer, kinds, strict=True)):
            if kind == OTHER and rng.random() >= OTHER_SHARE:
                continue
            out.targets[first + offset] = token
            out.kinds[first + offset] = kind
            digit = kind == COPY and token in self.digits
            out.weights[first + offset] = DIGIT_WEIGHT if digit else WEIGHTS.get(kind, CHOICE_WEIGHT)
        if question.passage is not None:
            self._point(out, episode, question, at, first, kinds, texts)

    def _answer(self, rng: random.Random, question: Question, full_quote: float) -> tuple[list[int], list[int]]:
        if question.passage is None:
            return [*self.refusal, self.end], [REFUSE, REFUSE, *[OTHER] * (len(self.refusal) - 1)]
        lead, after = LEAD_INS[0 if rng.random() < 0.7 else rng.randrange(len(LEAD_INS))]
        before, number, quote = self.ids(f"{lead} ["), self.ids(f"{question.passage + 1}"), self.ids(question.quote)
        opening = self.ids(f']{after}: "')
        if rng.random() >= full_quote:
            quote = quote[: rng.randint(2, 6)]
            kinds = [FIRST, *[COPY] * (len(quote) - 1)]
        else:
            quote = [*quote, *self.ids('"'), self.end]
            kinds = [FIRST, *[COPY] * (len(quote) - 4), *[STOP_HERE] * 3]
        ids = [*before, *number, *opening, *quote]
        decide = [DECIDE, DECIDE, *[OTHER] * (len(before) - 2)]
        return ids, [*decide, CITE, *[OTHER] * len(opening), *kinds]

    @staticmethod
    def _point(
        out: Row, episode: Episode, question: Question, at: int, first: int, kinds: list[int],
        texts: list[tuple[int, list[tuple[int, int]]]],
    ) -> None:  # fmt: skip
        """Note which tokens hold the answer, so that training can tell an attention head where to look."""
        assert question.passage is not None
        begin, offsets = texts[question.passage]
        section, text = episode.passages[question.passage]
        rendered = render_passage(question.passage + 1, episode.title, section, text)
        start = rendered.rindex(text) + text.index(question.quote)
        end = start + len(question.quote)
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        span = begin + inside[0], begin + inside[-1] + 1
        out.asked += [(position, *span) for position in range(at + 2, first)]
        quoting = first + kinds.index(FIRST)
        out.sentence += [(looking, *span) for looking in (first, first + kinds.index(CITE), quoting)]
        out.first += [(quoting + i, span[0] + i) for i in range(kinds.count(COPY) + 1)]


@dataclass
class Batch:
    tokens: Tensor  # (batch, tokens)
    positions: Tensor
    branch: Tensor
    targets: Tensor
    weights: Tensor
    kinds: Tensor
    passage_of: Tensor
    asked: Tensor  # (question tokens, 4): row, looking position, from, to
    sentence: Tensor  # (choices, 4): the same
    first: Tensor  # (choices, 3): row, looking position, position


def collate(rows: Sequence[Row], pad: int) -> Batch:
    longest = max(len(row.tokens) for row in rows)

    def padded(lists: Iterable[list[int]] | Iterable[list[float]], fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*values, *[fill] * (longest - len(values))] for values in lists], dtype=dtype)

    return Batch(
        padded((r.tokens for r in rows), pad, torch.long),
        padded((r.positions for r in rows), 0, torch.long),
        padded((r.branch for r in rows), -1, torch.long),
        padded((r.targets for r in rows), IGNORE, torch.long),
        padded((r.weights for r in rows), 0.0, torch.float32),
        padded((r.kinds for r in rows), OTHER, torch.long),
        padded((r.passage_of for r in rows), 0, torch.long),
        torch.tensor([(i, *point) for i, r in enumerate(rows) for point in r.asked], dtype=torch.long).view(-1, 4),
        torch.tensor([(i, *point) for i, r in enumerate(rows) for point in r.sentence], dtype=torch.long).view(-1, 4),
        torch.tensor([(i, *point) for i, r in enumerate(rows) for point in r.first], dtype=torch.long).view(-1, 3),
    )


def visible(branch: Tensor, prefix: int) -> Tensor:
    """(batch, 1, tokens, prefix + tokens): everyone sees the prefix and what came before in branch 0 or its own."""
    batch, tokens = branch.shape
    same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    mask = (same & torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril())[:, None]
    if not prefix:
        return mask
    return torch.cat((mask.new_ones(batch, 1, tokens, prefix), mask), dim=-1)
