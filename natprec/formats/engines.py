"""What each engine can run, as data. The candidates that are measured come from here, so a plan
never promises a format that its engine cannot load.

Sources: the engines' own code and issue threads, late 2026 (docs/engines.md has the links).
- vLLM runs symmetric W2-W8 in groups or channels; a quantized *tied* embedding does not load there
  (vllm #45535 is open), so embeddings stay at 16 bits.
- transformers decompresses at the first forward. It cannot fill a *packed* embedding (its weight
  initialisation needs `Embedding.weight`), but it does load 8-bit codes stored as int8. Since
  compressed-tensors 0.18 it also fails on packed zero points, so both offer symmetric formats only.
- `natprec` is our own loader, which reads everything that we write.
- Rounded activations: vLLM multiplies W8A8 in CUTLASS with weights per channel, and W2-W7 with A8, W2 and W3 with A4
  in Humming (W4A8 may run as W4A16 without a word: vllm #38064). Its cache scheme is float8 with one scale per
  tensor. transformers rounds as the checkpoint says, in float arithmetic: it shows the quality of any pair.
- What the largest magnitude of a token is scaled to: int8 kernels of vLLM (`dynamic_scaled_int8_quant_kernel`: absmax /
  127), of SGLang (`_per_token_quant_int8`: absmax / 127) and natprec's own take the largest code; compressed-tensors,
  which rounds in plain transformers, half of the range (`calculate_qparams`: 255 / 2).
- Experts: vLLM and SGLang run those of a layer as two fused matrices of one scheme (gate, up and down: "All MoE
  projections need to have same quantization scheme"); transformers unpacks all experts of a model by one scheme
  (`get_experts_scheme`), and with another one in some layer it fails.
- llama.cpp runs each tensor, the tied embedding too, in any GGUF type whose blocks divide its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from natprec.errors import unknown
from natprec.formats.activation_format import FLOAT8, ActivationFormat
from natprec.formats.gguf import GGUF_TYPES, GGUFType
from natprec.formats.number_format import CHANNEL, NumberFormat
from natprec.formats.pairings import Pairing

GROUP_SIZES = (32, 64, 128, CHANNEL)


@dataclass(frozen=True)
class EngineProfile:
    """The formats that an engine runs, by the way a weight is used.

    Attributes:
        linear: (bits, symmetric) pairs for Linear weights.
        embedding: the same for embeddings, tied or not; empty: they stay at 16 bits.
        head: the same for an untied output head.
        dense_embedding: whether embedding codes are packed; otherwise each takes a whole int8.
        pairings: products with rounded activations; a product with 16-bit ones exists for every weight.
        cache: bits of keys and values, below 16, that it keeps; 8 are float8 where `float_cache`.
        full_range: whether compressed-tensors' own code rounds activations, by its rule of the scale, and no kernel by
            its own: see `natprec.formats.activation_format`.
        types: GGUF types, which every weight may have, whatever its role; such an engine loads GGUF files only.
        fuses: whether weights that share their input (q/k/v, gate/up) must have one format.
        experts: which weights of experts must have one format: all of a layer, or of the model; or each as it is.
        ragged: whether it runs rows that are no multiple of the smallest group; kernels of vLLM and SGLang do not.
    """

    name: str
    linear: tuple[tuple[int, bool], ...]
    embedding: tuple[tuple[int, bool], ...] = ()
    head: tuple[tuple[int, bool], ...] = ()
    dense_embedding: bool = True
    pairings: tuple[Pairing, ...] = ()
    cache: tuple[int, ...] = ()
    float_cache: bool = True
    full_range: bool = False
    types: tuple[GGUFType, ...] = ()
    fuses: bool = True
    experts: Literal["each", "layer", "model"] = "each"
    ragged: bool = False

    def runs(self, role: str, fmt: NumberFormat) -> bool:
        """Whether the engine runs this format for a role ('linear', 'head' or 'embedding')."""
        if self.types or isinstance(fmt, GGUFType):
            return fmt in self.types
        return (fmt.bits, fmt.symmetric) in {
            "linear": self.linear,
            "head": self.head,
            "embedding": self.embedding,
        }[role]

    def multiplies(self, weight: NumberFormat, inputs: ActivationFormat) -> bool:
        """Whether the engine multiplies a Linear's weight with inputs rounded so."""
        return inputs.full_range == self.full_range and any(pairing.covers(weight, inputs) for pairing in self.pairings)

    def per_channel(self) -> tuple[NumberFormat, ...]:
        """Formats of weights that exist for products with rounded activations alone."""
        return tuple(NumberFormat(bits, CHANNEL) for each in self.pairings if each.per_channel for bits in each.weights)

    def cached(self, bits: int, head_size: int) -> ActivationFormat:
        """The format of keys and values of so many bits."""
        if bits == 8 and self.float_cache:
            return FLOAT8
        return ActivationFormat(bits, head_size, full_range=self.full_range)

    def measured(self, group_sizes: tuple[int, ...]) -> tuple[NumberFormat, ...]:
        """The formats to measure, narrowest first: those of Linear weights, at each group size; or GGUF types."""
        if self.types:
            return self.types
        return tuple(NumberFormat(bits, group, symmetric) for bits, symmetric in self.linear for group in group_sizes)

    def fitting(self, group_size: int, columns: Sequence[int]) -> int | None:
        """The largest group size, no larger than one, that divides rows of all of these lengths; None: there is none.

        Where no group does, it is `CHANNEL` if the engine runs such rows.
        """
        sizes = [group_size, *(size for size in reversed(GROUP_SIZES) if CHANNEL < size < group_size)]
        found = (size for size in sizes if size == CHANNEL or not any(count % size for count in columns))
        return next(found, CHANNEL if self.ragged else None)

    def stored_bytes(self, role: str, fmt: NumberFormat, rows: int, columns: int, uses: int = 1) -> int:
        """Bytes on disk of a weight of this role; `uses` is 2 for a tied embedding and head."""
        if role == "embedding" and not self.dense_embedding:
            return rows * columns + uses * fmt.scale_bytes(rows, columns)
        return fmt.stored_bytes(rows, columns)


_SYMMETRIC = tuple((bits, True) for bits in range(2, 9))
_BOTH = tuple((bits, symmetric) for bits in range(2, 9) for symmetric in (True, False))
_NARROW = tuple(range(3, 9))
_ANY_PAIR = tuple(Pairing(bits, tuple(range(2, 9)), grouped=True) for bits in _NARROW)

PROFILES = {
    profile.name: profile
    for profile in (
        EngineProfile(
            "vllm",
            linear=_SYMMETRIC,
            head=((4, True), (8, True)),
            cache=(8,),
            experts="layer",
            pairings=(Pairing(8, (2, 3, 4, 5, 6, 7)), Pairing(8, (8,), per_channel=True), Pairing(4, (2, 3))),
        ),
        EngineProfile(
            "transformers",
            linear=_SYMMETRIC,
            head=_SYMMETRIC,
            embedding=((8, True),),
            dense_embedding=False,
            pairings=_ANY_PAIR,
            cache=_NARROW,
            float_cache=False,
            full_range=True,
            experts="model",
            ragged=True,
        ),
        EngineProfile(
            "sglang",
            linear=((4, True), (8, True)),
            pairings=(Pairing(8, (8,), per_channel=True),),
            experts="layer",
        ),
        EngineProfile(
            "natprec",
            linear=_BOTH,
            head=_BOTH,
            embedding=_BOTH,
            pairings=_ANY_PAIR,
            cache=_NARROW,
            float_cache=False,
            ragged=True,
        ),
        EngineProfile("llama.cpp", linear=(), types=tuple(GGUF_TYPES.values()), fuses=False),
    )
}


def engine_names() -> list[str]:
    """All profiles, by name."""
    return sorted(PROFILES)


def engine_profile(name: str) -> EngineProfile:
    """The profile with this name.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    if name not in PROFILES:
        raise unknown("engine", name, PROFILES)
    return PROFILES[name]
