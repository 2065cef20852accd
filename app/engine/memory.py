"""The memory of a loaded model: which tensors hold it, how many bytes that is, and giving it back.

What is given back is the storage behind a tensor. Whoever still refers to the tensor holds nothing then, so that memory
does not depend on who keeps a reference, on circles, or on when the garbage collector comes by.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in dataclasses, lists, tuples and dicts; one that is there twice comes twice."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def num_bytes(value: object) -> int:
    """Of all storages behind `value`, each counted once, however many views there are of it."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, tensors(value))}
    return sum(storages.values())


def free(value: object) -> None:
    """Give the memory of these tensors back. Using one of them afterwards is an error."""
    for tensor in tensors(value):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)


def to_host(value: T) -> T:
    """The same structure with its tensors in pinned host memory, from where a GPU copies them fastest."""
    return _moved(value, lambda tensor: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor))


def to_device(value: T, device: torch.device) -> T:
    """The same structure with its tensors copied to the device."""
    moved = _moved(value, lambda tensor: tensor.to(device, non_blocking=True))
    torch.cuda.synchronize(device)
    return moved


def _moved(value: T, move: Callable[[Tensor], Tensor]) -> T:
    """A tensor that is there twice (tied embeddings) is moved once."""
    done: dict[int, Tensor] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in done:
                done[id(part)] = move(part)
            return done[id(part)]
        if isinstance(part, dict):
            return {name: walk(inner) for name, inner in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(walk(inner) for inner in part)
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{one.name: walk(getattr(part, one.name)) for one in fields(part) if one.init})
        return part

    moved: T = walk(value)
    return moved
