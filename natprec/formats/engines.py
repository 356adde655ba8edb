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
- bitsandbytes runs a Linear in NF4 or FP4, each with a description of its own (`QuantState`), or leaves it at 16 bits
  where transformers is told to skip it (`llm_int8_skip_modules`); embeddings, heads and experts stay as they are.
- diffusers loads a part of a pipeline with the package sdnq: integers, with a zero point as a float or without, in
  groups of a Linear's inputs; a convolution has one scale for an output channel (`natprec.checkpoints.sdnq`).
- llama.cpp runs each tensor, the tied embedding too, in any GGUF type whose blocks divide its rows; one tensor holds
  the same weight of all experts of a layer.

With a GPU, vLLM's formats are those of `natprec.formats.offers` that it runs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from natprec.errors import InputError, unknown
from natprec.formats.format import Format
from natprec.formats.gpus import generation
from natprec.formats.offers import OFFERS, Role, offered
from natprec.formats.patterns import Blocked, Integers, Listed, Pairing, Pattern
from natprec.formats.presets import CHANNEL, FP8_TENSOR, GGUF_TYPES
from natprec.formats.scaling import PerBlock, PerChannel, PerGroup, PerToken
from natprec.formats.tables import FOUR_BIT, beside_bytes

CONVOLUTIONS = tuple(f"Conv{kind}{size}d" for kind in ("", "Transpose") for size in (1, 2, 3))
"""Layers that natprec's own loader alone reads packed: compressed-tensors knows Linear and Embedding."""

GROUP_SIZES = (32, 64, 128, CHANNEL)

SDNQ_CODES = 8
"""Codes that sdnq puts into bytes together, whatever their width."""


@dataclass(frozen=True)
class EngineProfile:
    """The formats that an engine runs, by the way a tensor is used.

    Attributes:
        formats: role → patterns of formats: Linear weights, an untied output head, embeddings (tied or not), keys and
            values. What is not named stays at 16 bits.
        pairings: products with rounded activations; a product with 16-bit ones exists for every weight.
        container: what the engine loads.
        packs_embeddings: whether codes of embeddings are packed; otherwise each takes a whole int8.
        full_range: whether compressed-tensors' own code rounds activations, by its rule of the scale, and no kernel by
            its own: see `natprec.formats.Scaling`.
        fuses: whether weights that share their input (q/k/v, gate/up) must have one format.
        experts: which weights of experts must have one format: all of a layer, those of one name in a layer ('tensor'),
            or all of the model; or each as it is.
        layers: kinds of layers (see `natprec.models.layers`) whose codes it reads.
        ragged: whether it runs rows that are no multiple of the smallest group; kernels of vLLM and SGLang do not.
        leaves: whether any single Linear may stay at 16 bits, so that this is a candidate like others.
        gpu: the generation, or 'any', whose formats these are; None: those that do not depend on one.
        untested, portable: see `engine_profile`.
    """

    name: str
    formats: Mapping[Role, tuple[Pattern, ...]] = field(hash=False)
    pairings: tuple[Pairing, ...] = ()
    container: Literal["compressed-tensors", "gguf", "bitsandbytes", "sdnq"] = "compressed-tensors"
    packs_embeddings: bool = True
    full_range: bool = False
    fuses: bool = True
    experts: Literal["each", "tensor", "layer", "model"] = "each"
    layers: tuple[str, ...] = ("Linear", "Embedding")
    ragged: bool = False
    leaves: bool = False
    gpu: str | None = None
    untested: bool = False
    portable: bool = False

    def runs(self, role: Role, fmt: Format) -> bool:
        """Whether the engine runs this format for a role, beside 16 bits."""
        return any(pattern.covers(fmt) for pattern in self.formats.get(role, ()))

    def stores(self, role: Role, fmt: Format) -> bool:
        """Whether it runs this format of weights at all, be it beside rounded inputs alone."""
        return self.runs(role, fmt) or (role == "linear" and any(each.weights.covers(fmt) for each in self.pairings))

    def fits(self, role: Role, fmt: Format, rows: int, columns: int) -> bool:
        """Whether a weight of this shape can have the format: whole groups, blocks, and words of zero points."""
        by = fmt.scaling.granularity
        if isinstance(by, PerBlock) and rows % by.rows:
            return False
        if self.container == "sdnq" and (rows * columns % SDNQ_CODES or not self.runs(role, fmt)):
            return False
        if self.gpu is not None and role == "head" and not fmt.symmetric and rows * fmt.bits % 32:
            return False  # vLLM's loader asserts that they fill whole words
        return fmt.divides(columns) and not (isinstance(by, PerBlock) and columns % by.columns)

    def multiplies(self, weight: Format, inputs: Format) -> bool:
        """Whether the engine multiplies a Linear's weight with inputs rounded so."""
        return any(pairing.covers(weight, inputs) for pairing in self.pairings)

    def per_channel(self) -> tuple[Format, ...]:
        """Formats of weights whose codes are stored one to a byte, for products with rounded activations alone."""
        own = (each for each in self.pairings if each.channels_only and each.weights.bits == (8,))
        return tuple(fmt for each in own for fmt in each.weights.at((CHANNEL,)))

    def paired(self) -> tuple[Format, ...]:
        """Formats of weights, whatever the size of groups, to measure for products with rounded activations."""
        found = [fmt for each in self.pairings if each.channels_only for fmt in each.weights.at((CHANNEL,))]
        found += [fmt for each in self.pairings if isinstance(each.weights, Listed) for fmt in each.weights.formats]
        return tuple(dict.fromkeys(found))

    @property
    def cache_bits(self) -> tuple[int, ...]:
        """Widths of keys and values, below 16, that the engine keeps."""
        return tuple(fmt.bits for pattern in self.formats.get("cache", ()) for fmt in pattern.at((1,)))

    def cached(self, bits: int, head_size: int) -> Format:
        """The format of keys and values of so many bits."""
        known = (fmt for pattern in self.formats["cache"] for fmt in pattern.at((head_size,)))
        return next(fmt for fmt in known if fmt.bits == bits)

    def measured(self, group_sizes: tuple[int, ...]) -> tuple[Format, ...]:
        """The formats to measure, narrowest first: those of Linear weights, at each group size where they have one."""
        found = [fmt for pattern in self.formats["linear"] for fmt in pattern.at(group_sizes)]
        return tuple(sorted(found, key=lambda fmt: fmt.bits))

    def fitting(self, group_size: int, columns: Sequence[int]) -> int | None:
        """The largest group size, no larger than one, that divides rows of all of these lengths; None: there is none.

        Where no group does, it is `CHANNEL` if the engine runs such rows.
        """
        sizes = [group_size, *(size for size in reversed(GROUP_SIZES) if CHANNEL < size < group_size)]
        found = (size for size in sizes if size == CHANNEL or not any(count % size for count in columns))
        return next(found, CHANNEL if self.ragged else None)

    def grouped(self, role: Role, size: int | None) -> int | None:
        """The group size, or `CHANNEL` where the engine has formats of whole rows alone for a role."""
        patterns = self.formats.get(role, ())
        by_row = bool(patterns) and size is not None and not any(each.at((size,)) for each in patterns)
        return CHANNEL if by_row and any(each.at((CHANNEL,)) for each in patterns) else size

    def stored_bytes(self, role: Role, fmt: Format, rows: int, columns: int, uses: int = 1) -> int:
        """Bytes on disk of a weight of this role; `uses` is 2 for a tied embedding and head."""
        if role == "embedding" and not self.packs_embeddings:
            return rows * columns + uses * fmt.scale_bytes(rows, columns)
        if self.container == "sdnq":
            zeros = 0 if fmt.symmetric else 4 * rows * fmt.groups(columns)
            return -(-rows * columns * fmt.bits // 8) + fmt.scale_bytes(rows, columns) + zeros
        beside = beside_bytes(fmt) if self.container == "bitsandbytes" else 0
        return fmt.stored_bytes(rows, columns) + beside


_ALL, _NARROW = tuple(range(2, 9)), tuple(range(3, 9))
_SYMMETRIC = (Integers(_ALL),)
_BOTH = (Integers(_ALL, zero=("none", "code")),)
_FOUR_EIGHT = (Integers((4, 8)),)
_GGUF = (Listed(tuple(GGUF_TYPES.values())),)
_KEPT_BY_HEAD = (Integers(_NARROW, (PerGroup,), flowing=True),)
_BY_TOKEN, _BY_TOKEN_OR_GROUP = (PerToken,), (PerToken, PerGroup)
_ANY_INPUTS = Integers(_NARROW, _BY_TOKEN_OR_GROUP, flowing=True)
_ANY_PAIR = (Pairing(Integers(_ALL), _ANY_INPUTS),)
_BY_HEAD_FULL = (replace(_KEPT_BY_HEAD[0], full_range=True),)
_ANY_PAIR_FULL = (Pairing(Integers(_ALL), replace(_ANY_INPUTS, full_range=True)),)
_W8A8 = Pairing(Integers((8,), (PerChannel,)), Integers((8,), _BY_TOKEN, flowing=True))

GGUF_MODELS = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe",
}  # fmt: skip
"""Model types of transformers that natprec writes as GGUF, and what they are there: see
`natprec.models.gguf_architectures`."""

PROFILES = {
    profile.name: profile
    for profile in (
        EngineProfile(
            "vllm",
            {"linear": _SYMMETRIC, "head": _FOUR_EIGHT, "cache": (Listed((FP8_TENSOR,)),)},
            experts="layer",
            pairings=(
                Pairing(Integers((2, 3, 4, 5, 6, 7)), Integers((8,), _BY_TOKEN, flowing=True)),
                _W8A8,
                Pairing(Integers((2, 3)), Integers((4,), _BY_TOKEN, flowing=True)),
            ),
        ),
        EngineProfile(
            "transformers",
            {"linear": _SYMMETRIC, "head": _SYMMETRIC, "embedding": (Integers((8,)),), "cache": _BY_HEAD_FULL},
            packs_embeddings=False,
            pairings=_ANY_PAIR_FULL,
            full_range=True,
            experts="model",
            ragged=True,
        ),
        EngineProfile("sglang", {"linear": _FOUR_EIGHT}, pairings=(_W8A8,), experts="layer"),
        EngineProfile(
            "natprec",
            {"linear": _BOTH, "convolution": _BOTH, "head": _BOTH, "embedding": _BOTH, "cache": _KEPT_BY_HEAD},
            pairings=_ANY_PAIR,
            layers=("Linear", "Embedding", "Conv1D", *CONVOLUTIONS),
            ragged=True,
        ),
        EngineProfile(
            "diffusers",
            {
                "linear": _BOTH,
                "convolution": (Integers(_ALL, (PerChannel,), zero=("none", "code")),),
                "embedding": _BOTH,
            },
            layers=("Linear", "Embedding", *CONVOLUTIONS),
            container="sdnq",
            fuses=False,
            ragged=True,
            leaves=True,
        ),
        EngineProfile(
            "bitsandbytes",
            {"linear": (Blocked(FOUR_BIT),)},
            container="bitsandbytes",
            fuses=False,
            leaves=True,
        ),
        EngineProfile(
            "llama.cpp",
            {"linear": _GGUF, "head": _GGUF, "embedding": _GGUF},
            experts="tensor",
            container="gguf",
            fuses=False,
        ),
    )
}


def engine_names() -> list[str]:
    """All profiles, by name."""
    return sorted(PROFILES)


def engine_profile(name: str, gpu: str | None = None, untested: bool = False, portable: bool = False) -> EngineProfile:
    """The profile with this name, on a GPU if one is named.

    Args:
        gpu: a generation, a GPU's name, or 'any' of `natprec.formats.gpus.EVERYWHERE`; None: formats that the engine's
            files have held so far, whatever the GPU.
        untested: with a GPU, also what no run of the engine has loaded.
        portable: with a GPU, only what plain transformers loads too.
    Raises:
        InputError: there is no such engine or GPU (the message suggests the nearest), the engine's formats do not
            depend on a GPU, or an option lacks one.
    """
    if name not in PROFILES:
        raise unknown("engine", name, PROFILES)
    if gpu is None:
        for option, given in (("untested", untested), ("portable", portable)):
            if given:
                raise InputError(f"{option} concerns the formats that a GPU opens; give --gpu too, any or its name")
        return PROFILES[name]
    if name not in OFFERS:
        raise InputError(
            f"gpu {gpu!r}: natprec knows what {' and '.join(OFFERS)} runs by GPU, and nothing of the kind of engine "
            f"{name!r}; leave --gpu out"
        )
    return _on_gpu(name, generation(gpu), untested, portable)


@lru_cache(maxsize=32)
def _on_gpu(name: str, gpu: str, untested: bool, portable: bool) -> EngineProfile:
    formats: dict[Role, tuple[Pattern, ...]] = {}
    pairings = []
    for offer in offered(name, gpu, untested, portable):
        if offer.inputs is not None:
            pairings.append(Pairing(offer.weights, offer.inputs))
            continue
        for role in offer.roles:
            formats[role] = (*formats.get(role, ()), offer.weights)
    return replace(
        PROFILES[name],
        formats=formats,
        pairings=tuple(pairings),
        gpu=gpu,
        untested=untested,
        portable=portable,
    )
