"""The demo model's tokenizer, prompt format, episodes and network; seconds, no training."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.rag.answers.prompts import REFUSAL, render_passage, user_text
from demo.clauses import QUESTIONS, TOPICS, generate
from demo.episodes import (
    CITE,
    COPY,
    FIRST,
    IGNORE,
    Encoder,
    Episode,
    EpisodeMaker,
    Question,
    Recipe,
    collate,
    cut,
    visible,
)
from demo.network import Decoder, Shape
from demo.tokenizer_training import train_tokenizer
from demo.train import VOCABULARY
from demo.validation import draw_exam, examine

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "model"
POLICY = (ROOT / "app" / "rag" / "answers" / "legal_prompt.md").read_text(encoding="utf-8").strip()
RECIPE = Recipe((4, 5), 0, 6, 0.2, 0.8, 0.2)


@cache
def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shipped_tokenizer()


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    rng = random.Random(11)
    maker = EpisodeMaker([cut(generate(rng), 500) for _ in range(20)], QUESTIONS)
    drawn = [maker.draw(rng, RECIPE) for _ in range(60)]
    return [episode for episode in drawn if episode is not None]


# ---------------------------------------------------------------- tokenizer and prompt


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_a_word_is_the_same_token_in_a_passage_and_at_the_start_of_a_quote(tokenizer: Tokenizer) -> None:
    inside, quoted = tokenizer.encode("that The term").tokens, tokenizer.encode('"The term').tokens
    assert inside[1:] == quoted[1:]


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("2048").ids) == 4


def test_a_small_tokenizer_can_be_trained() -> None:
    trained = train_tokenizer(["The term of this Agreement is three years."] * 9, 300)
    assert trained.decode(trained.encode("The term ends.").ids) == "The term ends."


def test_the_policy_is_two_thousand_tokens(tokenizer: Tokenizer) -> None:
    assert 1_900 <= len(tokenizer.encode(POLICY).ids) <= 2_100


def test_the_policy_quotes_the_fixed_refusal() -> None:
    assert REFUSAL in POLICY


def test_training_sees_exactly_the_chat_template(encoder: Encoder, episodes: Sequence[Episode]) -> None:
    wrapped = AutoTokenizer.from_pretrained(MODEL)
    for episode in episodes[:10]:
        question = episode.questions[0]
        passages = [(episode.title, section, text) for section, text in episode.passages]
        messages = [
            {"role": "system", "content": POLICY},
            {"role": "user", "content": user_text(passages, question.text)},
        ]
        rendered = wrapped.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        row = encoder.pack(random.Random(0), Episode(episode.title, episode.passages, ()), [], 0, 1.0)
        built = [*encoder.system_ids(POLICY), *row.tokens, *encoder.request(question.text)]
        assert encoder.tokenizer.encode(rendered).ids == built


def test_the_template_accepts_any_roles_in_any_order() -> None:
    wrapped = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": role, "content": role[0]} for role in ("user", "assistant", "system", "user")]
    rendered = wrapped.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|user|>u<|end|><|assistant|>a<|end|><|system|>s<|end|><|user|>u<|end|>"
    assert wrapped.eos_token == "<|end|>"


# ---------------------------------------------------------------- episodes


def test_every_topic_generates_and_is_asked() -> None:
    rng = random.Random(5)
    told = {fact.topic for _ in range(300) for fact in generate(rng).facts}
    assert told == {topic.key for topic in TOPICS}
    assert all(QUESTIONS[topic.key] for topic in TOPICS)


def test_facts_are_where_they_say(episodes: Sequence[Episode]) -> None:
    document = generate(random.Random(2))
    for fact in document.facts:
        assert document.text[fact.start : fact.end].endswith((".", ")"))


def test_quotes_stand_in_the_passage_they_cite(episodes: Sequence[Episode]) -> None:
    for episode in episodes:
        for question in episode.questions:
            if question.passage is not None:
                assert question.quote in episode.passages[question.passage][1]


def test_packed_answers_read_as_production_answers(encoder: Encoder) -> None:
    episode = Episode("Deed", (("1 Term", "The term is two years. It is long."),), (
        Question("How long is the term?", 0, "The term is two years."), Question("Who pays?", None)))  # fmt: skip
    for number, question in enumerate(episode.questions, start=1):
        answer, kinds = encoder._answer(random.Random(1), question, 1.0)
        said = encoder.tokenizer.decode(answer)
        assert len(answer) == len(kinds)
        assert said == REFUSAL if question.passage is None else said.endswith('[1]: "The term is two years."')
        assert number and answer[-1] == encoder.end


def test_targets_follow_their_tokens_and_choices_point_at_the_quote(
    encoder: Encoder, episodes: Sequence[Episode]
) -> None:
    for episode in episodes[:20]:
        row = encoder.pack(random.Random(1), episode, [], 100, 1.0)
        assert len({len(row.tokens), len(row.positions), len(row.targets), len(row.weights), len(row.kinds)}) == 1
        for looking, at in row.first:
            assert row.kinds[looking] in (FIRST, COPY)
            same = row.tokens[at], row.targets[looking]
            words = [encoder.tokenizer.decode([token]).strip() for token in same]
            assert words[0] == words[1]
        for at, kind in enumerate(row.kinds):
            if kind == CITE:
                assert encoder.tokenizer.decode([row.targets[at]]).strip().isdigit()


def test_branches_do_not_see_each_other() -> None:
    mask = visible(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]), 3)[0, 0]
    assert mask.shape == (7, 10)
    assert mask[:, :3].all()
    assert mask[5].tolist() == [True] * 5 + [False, False, True, True, False]


# ---------------------------------------------------------------- network and weights


def test_the_network_is_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    network = Decoder(Shape(300, num_hidden_layers=2)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    sizes = {key: value for key, value in network.shape.to_json().items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": network.shape.rope_theta}
    peer = Qwen3ForCausalLM(Qwen3Config(**sizes, rope_parameters=rope, tie_word_embeddings=True)).eval()
    peer.model.load_state_dict(network.state_dict())
    tokens = torch.randint(0, 300, (2, 63))
    positions = torch.arange(63).expand(2, -1)
    with torch.no_grad():
        hidden, memory = network(tokens, positions)
        mask = visible(torch.zeros_like(tokens[:, 40:]), 40)
        prefix = [(keys[:, :, :40], values[:, :, :40]) for keys, values in memory]
        behind, _ = network(tokens[:, 40:], positions[:, 40:], mask, prefix)
        assert torch.allclose(network.logits(hidden), peer(tokens).logits, atol=1e-4)
        assert torch.allclose(behind, hidden[:, 40:], atol=1e-4)


def test_padding_changes_nothing(encoder: Encoder, episodes: Sequence[Episode]) -> None:
    rows = [encoder.pack(random.Random(i), episode, [], 0, 0.5) for i, episode in enumerate(episodes[:2])]
    batch = collate(rows, 0)
    assert batch.tokens.shape == batch.targets.shape
    for index, row in enumerate(rows):
        assert batch.tokens[index, : len(row.tokens)].tolist() == row.tokens
        assert (batch.targets[index, len(row.tokens) :] == IGNORE).all()


def test_the_folder_loads_and_stays_small() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert all(path.stat().st_size <= 16 * 2**20 for path in MODEL.iterdir())
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
    prompt = torch.tensor([[2, 100, 101, 1, 4]])
    assert model.generate(prompt, max_new_tokens=3).shape[1] <= 8


def test_the_shipped_weights_read(encoder: Encoder) -> None:
    """Generated contracts with seeds that training does not use; the model card has the real numbers."""
    network = Decoder(Shape(VOCABULARY)).eval()
    weights = load_file(MODEL / "model.safetensors")
    network.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    rng = random.Random(20_000_003)
    maker = EpisodeMaker([cut(generate(rng), 500) for _ in range(10)], QUESTIONS)
    system = torch.tensor([encoder.system_ids(POLICY)])
    with torch.no_grad():
        _, prefix = network(system, torch.arange(system.shape[1])[None])
        found = examine(network, encoder, prefix, draw_exam(maker, 10, 0.3, 1))
    assert found["hit"] >= 0.4
    assert found["refused"] >= 0.3


def test_a_passage_without_section_has_a_bare_title() -> None:
    assert render_passage(3, "Lease", "", "Text.") == "[3] Lease\nText.\n\n"
