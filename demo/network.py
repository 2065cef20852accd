"""The demo model as a training network: Qwen3's arithmetic and parameter names, plus what only training needs.

`transformers` computes the same function (a test compares the two); this version adds a shared prefix whose keys and
values are computed once, an attention mask per episode, and a view on one attention head (see `Trace`).
"""

from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # keys and values of one layer, each (batch, kv_heads, tokens, head_dim)


@dataclass(frozen=True)
class Shape:
    """The sizes of the decoder; field names are those of transformers' Qwen3Config."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 512
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass
class Trace:
    """What training wants to see of the layers: rotated queries and keys, and the hidden states after each."""

    attention: dict[int, KeyValue] = field(default_factory=dict)
    hidden: list[Tensor] = field(default_factory=list)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotary_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions (batch, tokens) -> cos and sin, each (batch, 1, tokens, head_dim)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[:, None, :, None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, heads, tokens, head_dim); `mask` as in Decoder.forward, or None for plain causal attention."""
    if mask is None or queries.is_cuda:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    return torch.stack([_attend_row(*row) for row in zip(queries, keys, values, mask, strict=True)])


def _attend_row(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """One sequence at a time keeps the scores in the CPU's cache: two to three times faster than its fused kernel."""
    heads, tokens, size = queries.shape
    bias = torch.zeros(mask.shape, dtype=queries.dtype).masked_fill_(~mask, -1e4)
    grouped = (queries * size**-0.5).reshape(keys.shape[0], -1, size)
    scores = torch.matmul(grouped, keys.transpose(1, 2)).view(heads, tokens, -1) + bias
    return torch.matmul(scores.softmax(-1).view(keys.shape[0], -1, keys.shape[1]), values).view(queries.shape)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, prefix: KeyValue | None
    ) -> tuple[Tensor, Tensor, KeyValue]:
        """x (batch, tokens, hidden) -> output, queries, keys and values including the prefix's."""
        batch, tokens, _ = x.shape
        queries = self.q_norm(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim)).transpose(1, 2)
        keys = self.k_norm(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)).transpose(1, 2)
        values = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        queries, keys = rotate(queries, *rotary), rotate(keys, *rotary)
        if prefix is not None:
            keys = torch.cat((prefix[0].expand(batch, -1, -1, -1), keys), dim=2)
            values = torch.cat((prefix[1].expand(batch, -1, -1, -1), values), dim=2)
        out = attend(queries, keys, values, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), queries, (keys, values)


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, prefix: KeyValue | None
    ) -> tuple[Tensor, Tensor, KeyValue]:
        attended, queries, key_value = self.self_attn(self.input_layernorm(x), rotary, mask, prefix)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), queries, key_value


class Decoder(nn.Module):
    """Token ids in, hidden states out; `logits` applies the tied embedding to the positions that matter."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Layer):  # blocks begin as the identity: faster and calmer early steps
            nn.init.zeros_(module.self_attn.o_proj.weight)
            nn.init.zeros_(module.mlp.down_proj.weight)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        prefix: list[KeyValue] | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """tokens, positions (batch, tokens); mask (batch, 1, tokens, prefix + tokens), true where attention may look.

        Returns the hidden states (batch, tokens, hidden) and the keys and values of every layer.
        """
        x = self.embed_tokens(tokens)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        x = x.to(dtype)  # the residual stream too: it runs in bfloat16 later, and half the bytes move
        rotary = rotary_tables(positions, self.shape.head_dim, self.shape.rope_theta, dtype)
        memory: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            x, queries, key_value = layer(x, rotary, mask, prefix[index] if prefix else None)
            memory.append(key_value)
            if trace is not None:
                trace.attention[index] = (queries, key_value[0])
                trace.hidden.append(x)
        return self.norm(x), memory

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)
