"""A segment rounded by several processes: one process for each fused group.

Each has seen its own part of the text. The one that rounds a fused group receives all processes' moments of it and adds
them up in the order of ranks; the codes that it chooses go to all, which then hold the same weights. All of this is
nothing to do for one process alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load, save
from torch import Tensor

from natprec.formats import Format
from natprec.models.layers import Layer
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer
from natprec.quantizers import QuantizedTensor
from natprec.utils.workers import Workers

FIELDS = ("codes", "scale", "zero_point", "offset", "outer")
"""Of a `QuantizedTensor`, those that are tensors."""


def owners(segmented: SegmentedModel, members: Sequence[Site]) -> dict[str, int]:
    """Fused group → the process that rounds it: by the operations of GPTQ, rows · columns² + columns³."""
    costs: Counter[str] = Counter()
    for site in members:
        rows, columns = site_layer(segmented.model, site).shape
        costs[site.fused_group] += rows * columns**2 + (0 if site.fused_group in costs else columns**3)
    return segmented.workers.assign(costs)


def sums_at_owners(
    workers: Workers,
    own: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    owner: Mapping[str, int],
    like: Tensor,
) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors that each process has gathered, added up at the one that each belongs to.

    Args:
        own: name → tensor; those that no sample of this process reached are not there.
        shapes: of all names, at all processes the same; `owner`: their ranks.
        like: on the device and of the dtype of the tensors, which travel as they are.
    Returns:
        The sums that belong to this process, of several processes float32, or float64 as the tensors are, and the
        names that samples of any process reached.
    """
    if workers.size == 1:
        return dict(own), set(own)
    (found,) = workers.all_sum(torch.tensor([name in own for name in shapes], dtype=torch.int64))
    reached = [name for name, count in zip(shapes, found.tolist(), strict=True) if count]
    sizes = {name: math.prod(shapes[name]) for name in reached}
    of_rank = [[name for name in reached if owner[name] == rank] for rank in range(workers.size)]
    nothing = like.new_empty(0)
    flat = {name: own[name].flatten() if name in own else nothing.new_zeros(sizes[name]) for name in reached}
    pieces = [torch.cat([nothing, *(flat[name] for name in names)]) for names in of_rank]
    total = torch.zeros_like(pieces[workers.rank], dtype=torch.promote_types(like.dtype, torch.float32))
    for part in workers.exchange(pieces, [total.shape] * workers.size):
        total += part
    names = of_rank[workers.rank]
    parts = total.split([sizes[name] for name in names]) if names else ()
    return {name: part.view(*shapes[name]) for name, part in zip(names, parts, strict=True)}, set(reached)


def from_owner(workers: Workers, values: Tensor | None, rank: int, like: Tensor) -> Tensor:
    """A float32 vector that one process has, at all of them, on the device of `like`."""
    if workers.size == 1:
        assert values is not None
        return values
    sent = b"" if values is None else save({"values": values.cpu().contiguous()})
    return load(workers.all_bytes(sent)[rank])["values"].to(like.device)


def codes_of_all(
    workers: Workers, own: Mapping[str, QuantizedTensor], formats: Mapping[str, Format], device: torch.device
) -> dict[str, QuantizedTensor]:
    """The codes that the processes chose, at all of them, in the order of `formats`, which has every site."""
    if workers.size == 1:
        return dict(own)
    tensors, found = tensors_of(own), dict[str, Tensor]()
    for rank, content in enumerate(workers.all_bytes(save(tensors))):
        found |= tensors if rank == workers.rank else load(content)
    return codes_from(found, formats, device)


def tensors_of(codes: Mapping[str, QuantizedTensor]) -> dict[str, Tensor]:
    """Codes of several sites as tensors on the CPU, for a file or another process."""
    return {
        f"{name}/{each}": value.cpu().contiguous()
        for name, own in codes.items()
        for each in FIELDS
        if (value := getattr(own, each)) is not None
    }


def codes_from(
    tensors: Mapping[str, Tensor], formats: Mapping[str, Format], device: torch.device
) -> dict[str, QuantizedTensor]:
    """The inverse of `tensors_of`, of those sites that are there, in the order of `formats`."""
    return {
        name: QuantizedTensor(fmt, *(_on(tensors.get(f"{name}/{each}"), device) for each in FIELDS))  # type: ignore[arg-type]
        for name, fmt in formats.items()
        if f"{name}/codes" in tensors
    }


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def gradients_at_owners(
    workers: Workers, layers: Mapping[str, Layer], owner: Mapping[str, int], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The gradients of weights after a backward pass, added up over processes at the one that moves each.

    Args:
        layers: by name, at least one.
        owner: name → rank; `dtype`: in which gradients travel.
    """
    own = {name: gradient.to(dtype) for name, layer in layers.items() if (gradient := layer.gradient) is not None}
    shapes = {name: layer.shape for name, layer in layers.items()}
    return sums_at_owners(workers, own, shapes, owner, _nothing(layers, dtype))[0]


def share_weights(workers: Workers, layers: Mapping[str, Layer], owner: Mapping[str, int], dtype: torch.dtype) -> None:
    """Leave in each process what others have made of the weights that they move; arguments as above."""
    if workers.size == 1:
        return
    of_rank = [[name for name in layers if owner[name] == rank] for rank in range(workers.size)]
    sizes = {name: math.prod(layer.shape) for name, layer in layers.items()}
    own = [layers[name].matrix.detach().to(dtype).flatten() for name in of_rank[workers.rank]]
    leaving = torch.cat([_nothing(layers, dtype), *own])
    coming = [(sum(sizes[name] for name in names),) for names in of_rank]
    for rank, part in enumerate(workers.exchange([leaving] * workers.size, coming)):
        if rank != workers.rank:
            pieces = part.split([sizes[name] for name in of_rank[rank]])
            for name, each in zip(of_rank[rank], pieces, strict=True):
                layers[name].put(each.view(*layers[name].shape))


def _nothing(layers: Mapping[str, Layer], dtype: torch.dtype) -> Tensor:
    """An empty tensor where weights are."""
    return next(iter(layers.values())).weight.detach().new_empty(0, dtype=dtype)
