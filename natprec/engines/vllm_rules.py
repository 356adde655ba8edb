"""Which kernels vLLM chooses from, by version, in its order: data, read from the wheels on PyPI.

Sources, below `vllm/model_executor/`: `kernels/linear/__init__.py` (the lists `_POSSIBLE_…_KERNELS` and who chooses
from them), each kernel's `is_supported` and `can_implement`, `layers/quantization/utils/humming/` (its place on SM90,
and the inputs that it falls back to), the `schemes/` of compressed-tensors for the least capability and the widths.
`scripts/vllm_chooser.py` has vLLM's own code choose, and compares.

A kernel has its class's name without `LinearKernel` or `Kernel`. Left out are those of packages that vLLM does not
install (Conch, b12x, fbgemm, quark). FlashInfer, DeepGEMM and Humming are installed with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

ALL, ANY_GPU, BLACKWELL = (2, 3, 4, 5, 6, 7, 8), (75, 999), (100, 999)


@dataclass(frozen=True)
class Kernel:
    """When a kernel takes a layer, and whether it rounds its inputs.

    Attributes:
        gpus: least and greatest compute capability, ten times.
        symmetric, zeros: widths of integers without and with zero points; of floats left empty.
        groups: sizes, -1 for a whole row; None: any.
        columns, rows: what they are multiples of; `least`: how many there are of each at least.
        half: float16 alone.
        inputs: 'said': in the format that the scheme has for them; '16': not; 'humming': by `natprec.engines.vllm`.
    """

    name: str
    gpus: tuple[int, int] = ANY_GPU
    symmetric: tuple[int, ...] = ()
    zeros: tuple[int, ...] = ()
    groups: tuple[int, ...] | None = None
    columns: int = 1
    rows: int = 1
    least: int = 1
    half: bool = False
    inputs: str = "16"


_CUTLASS_W4A8 = Kernel("CutlassW4A8", (90, 90), (4,), groups=(128,), columns=128, rows=128, inputs="said")


@dataclass(frozen=True)
class Rules:
    """Of one version.

    Attributes:
        mixed: integers beside 16 bits; other lists by the operands of their products.
        zero_widths: of weights with zero points that its scheme has a type for.
        rounds_integers: widths of inputs beside packed integers that it has a scheme for.
        head_widths: of an output head, integers.
        humming_first: capabilities where Humming stands directly before Marlin in every list.
        groups_as_16: Humming multiplies weights in groups with 16-bit inputs, whatever the file says.
    """

    version: str
    mixed: tuple[Kernel, ...]
    fp8: tuple[Kernel, ...]
    fp8_block: tuple[Kernel, ...]
    fp8_alone: tuple[Kernel, ...]
    nvfp4: tuple[Kernel, ...]
    nvfp4_alone: tuple[Kernel, ...]
    mxfp4: tuple[Kernel, ...]
    mxfp8: tuple[Kernel, ...]
    zero_widths: tuple[int, ...]
    rounds_integers: tuple[int, ...] = ()
    head_widths: tuple[int, ...] = ALL
    humming_first: tuple[int, ...] = ()
    groups_as_16: bool = False
    w4afp8: tuple[Kernel, ...] = (_CUTLASS_W4A8,)


_MACHETE = Kernel("Machete", (90, 90), (4, 8), (4, 8), (-1, 64, 128), columns=64, rows=128)
_MARLIN = Kernel("Marlin", ANY_GPU, (4, 8), (4,), (-1, 32, 64, 128))
_REST = (
    Kernel("Exllama", ANY_GPU, (4, 8), rows=8, half=True),
    Kernel("TritonW4A16", ANY_GPU, (4,), (4,), (-1, 32, 64, 128, 256), rows=8),
    Kernel("Humming", ANY_GPU, ALL, ALL, inputs="humming"),
)
_CUTLASS_BLOCK = Kernel("CutlassFp8BlockScaledMM", (90, 999), inputs="said")
_DEEP = Kernel("FlashInferFp8DeepGEMMDynamicBlockScaled", (90, 90), columns=128, rows=64, inputs="said")
_DEEP_10 = replace(_DEEP, name="DeepGemmFp8BlockScaledMM", gpus=BLACKWELL)
_MARLIN_FP8 = Kernel("MarlinFP8ScaledMM")
_FP8 = (
    Kernel("FlashInferFP8ScaledMM", BLACKWELL, inputs="said"),
    Kernel("CutlassFP8ScaledMM", (89, 999), inputs="said"),
)
_FP8_ALONE = (Kernel("HummingFP8ScaledMM"), _MARLIN_FP8)
_NVFP4 = (
    Kernel("FlashInferCuteDslNvFp4", (100, 109), inputs="said"),
    Kernel("FlashInferCutlassNvFp4", BLACKWELL, inputs="said"),
)
_MARLIN_FP4, _HUMMING_FP4 = Kernel("MarlinNvFp4"), Kernel("HummingNvFp4", inputs="humming")
_MXFP4 = (Kernel("FlashInferMxFp4", BLACKWELL, inputs="said"), Kernel("MarlinMxFp4"))
_MXFP8 = (
    Kernel("FlashInferCutedslMxfp8", (100, 109), columns=32, least=128, inputs="said"),
    Kernel("FlashInferCutlassMxfp8", (110, 999), columns=32, rows=32, least=128, inputs="said"),
    Kernel("MarlinMxfp8", columns=32),
)

VLLM = {
    rules.version: rules
    for rules in (
        Rules(
            "0.25.1",
            mixed=(_MACHETE, Kernel("AllSpark", (80, 89), (8,), groups=(-1,), columns=16, rows=16), _MARLIN, *_REST),
            fp8=_FP8,
            fp8_block=(_DEEP, _DEEP_10, _CUTLASS_BLOCK, Kernel("TritonFp8BlockScaledMM", (89, 999), inputs="said")),
            fp8_alone=_FP8_ALONE,
            nvfp4=(*_NVFP4, _MARLIN_FP4),
            nvfp4_alone=(_MARLIN_FP4,),
            mxfp4=_MXFP4,
            mxfp8=_MXFP8,
            zero_widths=(4, 8),
            head_widths=(4, 8),
        ),
        Rules(
            "0.33.0",
            mixed=(_MACHETE, _MARLIN, *_REST),
            fp8=_FP8,
            fp8_block=(_DEEP, _DEEP_10, _CUTLASS_BLOCK, _MARLIN_FP8),
            fp8_alone=_FP8_ALONE,
            nvfp4=(*_NVFP4, _MARLIN_FP4, _HUMMING_FP4),
            nvfp4_alone=(Kernel("FlashInferCuteDslNvFp4W4A16", (100, 109)), _MARLIN_FP4, _HUMMING_FP4),
            mxfp4=(*_MXFP4, Kernel("HummingMxFp4", inputs="humming")),
            mxfp8=(*_MXFP8, Kernel("HummingMxfp8", inputs="humming")),
            zero_widths=ALL,
            rounds_integers=(8, 4),
            humming_first=(90,),
            groups_as_16=True,
            w4afp8=(_CUTLASS_W4A8, _REST[-1]),
        ),
    )
}
"""Version → its rules, oldest first."""

NEWEST = max(VLLM, key=lambda version: tuple(map(int, version.split("."))))
