"""Who may share a block, and which rows read one together."""

import subprocess
import sys
from dataclasses import replace

import pytest

from app.engine import Request, SamplingParams, TokenSegment, scheduler
from app.engine.prefix import ROOT, BlockHasher, LabelChain, PrefixGroup, prefix_groups
from tests.engine.conftest import config, prompts

ACME, BETA, MATTER = frozenset({"acme"}), frozenset({"beta"}), frozenset({"acme", "matter-1"})


def test_key_depends_on_every_field() -> None:
    hasher = BlockHasher("model", 2)
    keys = {
        hasher.key(ROOT, [1, 2], frozenset()),
        hasher.key(ROOT, [1, 3], frozenset()),
        hasher.key(b"p" * 32, [1, 2], frozenset()),
        hasher.key(ROOT, [1, 2], ACME),
        hasher.key(ROOT, [1, 2], MATTER),
        BlockHasher("other", 2).key(ROOT, [1, 2], frozenset()),
    }
    assert len(keys) == 6 and all(len(key) == 32 for key in keys)


def test_fields_are_length_prefixed_so_that_borders_cannot_move() -> None:
    hasher = BlockHasher("model", 2)
    assert hasher.key(ROOT, [1], frozenset({"ab", "c"})) != hasher.key(ROOT, [1], frozenset({"a", "bc"}))
    assert hasher.key(ROOT, [1], frozenset({"ab"})) != hasher.key(ROOT, [1], frozenset({"a", "b"}))
    assert hasher.key(ROOT, [1], frozenset({"a", "b"})) == hasher.key(ROOT, [1], frozenset({"b", "a"}))


def test_label_is_the_union_from_the_start() -> None:
    chain = LabelChain([(4, frozenset()), (2, ACME), (0, BETA), (3, frozenset()), (1, MATTER)])
    assert chain.through(4) == frozenset()
    assert chain.through(5) == chain.through(6) == chain.through(9) == ACME
    assert chain.through(10) == chain.through(99) == ACME | MATTER


def test_groups_nest_and_leave_short_runs_alone() -> None:
    tables = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 9], [7, 8], [7, 5], []]
    groups, covered = prefix_groups(tables)
    assert groups == [PrefixGroup((0, 1, 2), 0, (1, 2)), PrefixGroup((0, 1), 2, (3, 4))]
    assert covered == [4, 4, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("second", "hits"),
    [
        ([(32, None), (32, ACME)], 64),  # the same labels: everything but the last partial block
        ([(32, None), (32, BETA)], 32),  # another tenant: only the firm-wide part
        ([(32, None), (32, MATTER)], 32),  # a narrower label is another label
        ([(32, ACME), (32, None)], 0),  # union: what follows a labelled segment is labelled
        ([(48, None), (16, ACME)], 32),
        ([(31, None), (33, ACME)], 16),  # the block across the border takes the label
    ],
)
def test_equal_tokens_hit_only_under_equal_labels(engine, second, hits) -> None:  # type: ignore[no-untyped-def]
    def ask(parts):  # type: ignore[no-untyped-def]
        [tokens] = prompts(70)
        cuts, segments = 0, []
        for length, label in parts:
            segments.append(TokenSegment(tokens[cuts : cuts + length], label or frozenset()))
            cuts += length
        segments.append(TokenSegment(tokens[cuts:], ACME))
        request = Request("r", tuple(segments), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        return made.generate_requests([request])[0]

    made = engine()
    cold, warm = ask([(32, None), (32, ACME)]), ask(second)
    assert cold.metrics.num_cached_tokens == 0
    assert warm.metrics.num_cached_tokens == hits
    assert warm.token_ids == cold.token_ids


def test_at_least_one_token_is_computed_on_a_full_hit(engine) -> None:  # type: ignore[no-untyped-def]
    made, [tokens] = engine(), prompts(64)
    short = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    cold, warm = (made.generate([tokens], short)[0] for _ in range(2))
    assert (cold.metrics.num_cached_tokens, warm.metrics.num_cached_tokens) == (0, 48)
    assert cold.token_ids == warm.token_ids


def test_shared_prompt_is_computed_once_when_all_arrive_together(engine) -> None:  # type: ignore[no-untyped-def]
    [shared] = prompts(160)
    many = [shared + tail for tail in prompts(*[5] * 12, seed=3)]
    made = engine(max_num_batched_tokens=64)
    made.generate(many, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    assert made.stats().prefill_tokens_computed == 160 + 12 * 5
    assert made.stats().prefix_hit_tokens == 11 * 160


@pytest.mark.parametrize("spoiled", [False, True], ids=["groups", "negative control: each reads the other's"])
def test_two_groups_with_divergent_tails_equal_no_groups(engine, monkeypatch, spoiled) -> None:  # type: ignore[no-untyped-def]
    starts = prompts(64, 96, seed=8)
    many = [starts[i % 2] + tail for i, tail in enumerate(prompts(5, 17, 33, 9, 21, 2, seed=9))]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def tokens() -> list[list[int]]:
        return [output.token_ids for output in engine().generate(many, params)]

    seen: set[int] = set()

    def groups(tables: list[list[int]]) -> tuple[list[PrefixGroup], list[int]]:
        found, covered = prefix_groups(tables)
        seen.add(len(found))
        if spoiled and len(found) == 2:
            first, second = (group.block_ids[:4] for group in found)
            found[0] = replace(found[0], block_ids=second + found[0].block_ids[4:])
            found[1] = replace(found[1], block_ids=first + found[1].block_ids[4:])
        return found, covered

    monkeypatch.setattr(scheduler, "prefix_groups", groups)
    grouped = tokens()
    assert 2 in seen
    monkeypatch.setattr(scheduler, "prefix_groups", lambda tables: ([], [0] * len(tables)))
    assert (grouped == tokens()) != spoiled


def test_config_with_the_cache_off_shares_nothing(llama) -> None:  # type: ignore[no-untyped-def]
    assert config(llama, enable_prefix_cache=False).enable_prefix_cache is False


def test_scheduling_rules_import_no_torch() -> None:
    code = "import sys, app.engine.scheduler, app.engine.admission; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
