"""Which rank holds what of a model: heads, rows of the MLP and of the vocabulary, layers. Pure data.

Within a layer as in Megatron-LM (Shoeybi and others, arXiv:1909.08053): query, key, value, gate and up are split by
their outputs, the two that follow by their inputs, so that a layer needs two sums over ranks. Layers are split into
stages, one behind the other. Rank = stage * tensor + place within the stage.
"""

from dataclasses import dataclass, replace

from app.engine.architecture import DecoderSpec
from app.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Cut:
    """What is held of one dimension of a tensor, which has `total` indices there."""

    dim: int
    held: range
    total: int

    @property
    def index(self) -> tuple[slice, ...]:
        return (slice(None),) * self.dim + (slice(self.held.start, self.held.stop),)


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of the model `whole`. spec: of this part, as if it were a model of its own.

    heads, kv_heads, inner (rows of gate and up), vocab, layers: which of the whole model's.  embeds: the rank turns
    tokens into a stream.  predicts: it turns the stream into logits.  adds_bias: of the layers that are summed over
    ranks, whose bias must be added once.
    """

    whole: DecoderSpec
    spec: DecoderSpec
    heads: range
    kv_heads: range
    inner: range
    vocab: range
    layers: range
    embeds: bool
    predicts: bool
    adds_bias: bool

    @property
    def embedding_rows(self) -> int:
        return len(self.vocab) if self.embeds or (self.predicts and self.whole.tied) else 0

    @property
    def head_rows(self) -> int:
        return len(self.vocab) if self.predicts else 0

    def cut(self, name: str) -> Cut | None:
        """Of a tensor in the checkpoint, by its name; None: it is held whole."""
        module, kind = name.split(".")[-2:]
        whole, dim = self.whole, self.whole.head_dim
        queries = _times(self.heads, dim), whole.num_heads * dim
        keys = _times(self.kv_heads, dim), whole.num_kv_heads * dim
        inner, vocab = (self.inner, whole.intermediate_size), (self.vocab, whole.vocab_size)
        by_rows = {
            "q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner, "up_proj": inner,
            "embed_tokens": vocab, "lm_head": vocab,
        }  # fmt: skip
        by_columns = {"o_proj": queries, "down_proj": inner} if kind == "weight" else {}
        axis, found = (0, by_rows.get(module)) if module in by_rows else (1, by_columns.get(module))
        return None if found is None or len(found[0]) == found[1] else Cut(axis, *found)


@dataclass(frozen=True, slots=True)
class Layout:
    """tensor: ranks that share each layer.  stages: of the pipeline."""

    tensor: int = 1
    stages: int = 1

    @classmethod
    def of(cls, config: EngineConfig) -> "Layout":
        return cls(config.tensor_parallel_size, config.pipeline_parallel_size)

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.stages

    def place(self, rank: int) -> tuple[int, int]:
        """Stage, and place within it."""
        return divmod(rank, self.tensor)

    def part(self, whole: DecoderSpec, rank: int = 0) -> Part:
        """Raises ValueError where the model does not fall into so many parts."""
        self._check(whole)
        stage, place = self.place(rank)
        layers = _share(whole.num_layers, self.stages, stage)
        heads, inner = _share(whole.num_heads, self.tensor, place), _share(whole.intermediate_size, self.tensor, place)
        kv_heads = _kv_heads(whole.num_kv_heads, self.tensor, place)
        spec = replace(
            whole, num_heads=len(heads), num_kv_heads=len(kv_heads), intermediate_size=len(inner),
            num_layers=len(layers), windows=whole.windows[layers.start : layers.stop],
        )  # fmt: skip
        return Part(
            whole, spec, heads, kv_heads, inner, _share(whole.vocab_size, self.tensor, place), layers,
            embeds=stage == 0, predicts=stage == self.stages - 1, adds_bias=place == 0,
        )  # fmt: skip

    def vocab_rows(self, vocab_size: int) -> list[int]:
        """How many rows each place of a stage holds of a vocabulary."""
        return [len(_share(vocab_size, self.tensor, place)) for place in range(self.tensor)]

    def _check(self, whole: DecoderSpec) -> None:
        size, kv_heads = self.tensor, whole.num_kv_heads
        if whole.num_heads % size:
            raise ValueError(f"tensor_parallel_size={size} does not divide the model's {whole.num_heads} heads")
        if kv_heads % size and size % kv_heads:
            raise ValueError(
                f"tensor_parallel_size={size} neither divides the model's {kv_heads} KV heads nor is a multiple of them"
            )
        if self.stages > whole.num_layers:
            raise ValueError(f"pipeline_parallel_size={self.stages} is more than the model's {whole.num_layers} layers")


def _share(total: int, parts: int, index: int) -> range:
    """Consecutive and as even as possible; the first get what is left over."""
    each, more = divmod(total, parts)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))


def _kv_heads(total: int, parts: int, index: int) -> range:
    """Where there are fewer than ranks, several hold the same one."""
    if parts <= total:
        return _share(total, parts, index)
    mine = index * total // parts
    return range(mine, mine + 1)


def _times(held: range, size: int) -> range:
    return range(held.start * size, held.stop * size)
