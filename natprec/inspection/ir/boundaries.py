"""Boundaries (T14): edges where the materialization changes, and what crossing them erases (T7-T9).

A value leaves one materialization as codes and is rounded into another. With static scales, which is what an epilogue
can hold, that is one function of the code, so everything about it follows from how often each code occurs. Free is only
what is injective on the codes that occur (T9) and, on held-out text, stays so; H <= b would not be enough (T8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, fx

from natprec.config import ROOM_KELVIN
from natprec.inspection.information import Codebook, landauer_joules, recode
from natprec.inspection.information.landauer import marginal_bound_bits
from natprec.inspection.ir.bundle import Materialization
from natprec.inspection.ir.domains import place_of
from natprec.inspection.ir.graph import Capture, module_path, weight_of
from natprec.inspection.ir.operators import ATTENTION, before_moving, operands, operator
from natprec.quantizers.ranks import rank
from natprec.utils.schema import Called, written

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Edge:
    """A value and the nodes of one domain that read it in another materialization."""

    value: fx.Node
    readers: tuple[fx.Node, ...]

    @property
    def names(self) -> tuple[str, str]:
        """Of the source and of the target, for people."""
        reader = self.readers[0]
        return value_name(self.value), place_of(reader).operation or module_path(reader) or operator(reader)


@dataclass(frozen=True)
class Boundary:
    """A crossing, and its cost.

    Attributes:
        source_operation, target_operation: the fused operations on both sides; None for norms, the residual stream and
            the like.
        kind: 'activation', or 'weight' for the codes of a checkpoint that are rounded to another format.
        elements: of the values that were counted, or of the weight.
        source_bits, target_bits: widths of both materializations.
        source_entropy_bits: of the codes that occur, Miller and Madow, per element.
        realized_codes: |S|, how many different codes occur.
        unseen_mass: Good and Turing's share of codes not seen.
        injective: whether no two realized codes meet.
        colliding_codes: how many realized codes share their image with another.
        heldout_unseen, heldout_collisions: share of held-out elements; None without held-out data.
        free: injective, on held-out data too.
        erased_bits: H(X | f(X)) × elements.
        erased_bits_bound: elements × max(0, H - target bits), below which no map can stay.
        landauer_joules: k_B T ln 2 × erased bits, a floor.
        fused: whether the rounding stands in the epilogue of the fused operation before, so that its input is never
            stored.
    """

    source: str
    target: str
    source_operation: Annotated[str | None, Called("source_unit")]
    target_operation: Annotated[str | None, Called("target_unit")]
    kind: str
    elements: int
    source_bits: int
    target_bits: int
    source_entropy_bits: float
    realized_codes: int
    unseen_mass: float | None
    injective: bool
    colliding_codes: int
    heldout_unseen: float | None
    heldout_collisions: float | None
    free: bool
    erased_bits: float
    erased_bits_bound: float
    landauer_joules: float
    fused: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return written(self)


def value_name(node: fx.Node) -> str:
    """The module that computes a value, and how where it is more than one operator."""
    node = before_moving(node)
    path = module_path(node) or weight_of(node) or ""
    return path if weight_of(node) is not None else f"{path}:{operator(node)}" if path else operator(node)


def find_edges(capture: Capture) -> list[Edge]:
    """Every value that is read in another materialization than its own, once per domain that reads it."""
    readers: dict[tuple[fx.Node, str], list[fx.Node]] = {}
    for node in capture.nodes:
        if node.op not in ("call_function", "call_module"):
            continue
        for value in operands(node):
            if place_of(value).materialization != place_of(node).materialization:
                readers.setdefault((value, place_of(node).domain), []).append(node)
    return [Edge(value, tuple(nodes)) for (value, _), nodes in readers.items()]


def static_map(materialization: Materialization, largest: float) -> Callable[[Tensor], Tensor]:
    """Values to codes of a materialization, with one scale for all text, made for this largest magnitude.

    A code is the bits of a float of 16 or more, else its rank: the place among the values of the format's codebook.
    """
    stored = materialization.stored
    if isinstance(stored, torch.dtype):
        dtype = stored
        return lambda values: values.to(dtype).view(_INTEGERS[dtype.itemsize])
    book, step = stored.codebook, static_step(materialization, largest)
    return lambda values: rank(book, book.nearest_(values / step))


def static_step(materialization: Materialization, largest: float) -> float:
    """The scale of `static_map`; 1 where values are not scaled."""
    stored = materialization.stored
    return 1.0 if isinstance(stored, torch.dtype) else largest / max(stored.codebook.largest, 1) or 1.0


def in_materialization(book: Codebook, materialization: Materialization, largest: float) -> Codebook:
    """The codebook as the source domain holds it: a 16-bit one, or rounded, in units of `static_step`."""
    if isinstance(materialization.stored, torch.dtype):
        return book
    rounded = materialization.stored.codebook.nearest_(book.values / static_step(materialization, largest))
    return book.rounded(rounded, 2**materialization.bits)


def cost(
    edge: Edge, book: Codebook, heldout: Codebook | None = None, kelvin: float = ROOM_KELVIN, fused: bool | None = None
) -> Boundary:
    """What crossing an edge costs.

    Args:
        book: of the value in 16 bits; `heldout`: of the same value on other text.
    """
    source, target = place_of(edge.value).materialization, place_of(edge.readers[0]).materialization
    largest = float(book.values.abs().max())
    own = in_materialization(book, source, largest)
    other = None if heldout is None else in_materialization(heldout, source, largest)
    step, to_code = static_step(source, largest), static_map(target, largest)
    made = recode(own, lambda codes: to_code(codes * step), target.bits, other)
    erased = made.erased_bits * own.elements
    return Boundary(
        *edge.names,
        source_operation=place_of(edge.value).operation,
        target_operation=place_of(edge.readers[0]).operation,
        kind="activation",
        elements=own.elements,
        source_bits=source.bits,
        target_bits=target.bits,
        source_entropy_bits=own.entropy_bits,
        realized_codes=own.size,
        unseen_mass=own.unseen_mass,
        injective=made.injective,
        colliding_codes=made.colliding_codes,
        heldout_unseen=made.heldout_unseen,
        heldout_collisions=made.heldout_collisions,
        free=made.free,
        erased_bits=erased,
        erased_bits_bound=marginal_bound_bits(own.entropy_bits, target.bits, own.elements),
        landauer_joules=landauer_joules(erased, kelvin),
        fused=has_epilogue(edge.value) if fused is None else fused,
    )


def has_epilogue(node: fx.Node) -> bool:
    """Whether the value comes out of a matrix product's epilogue, where rounding it needs no memory."""
    operation = place_of(node).operation
    return operation is not None and operator(node) not in (ATTENTION, "embedding")
