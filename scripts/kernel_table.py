"""The support table of the Triton kernel: what each width, epilogue and architecture compiles to. No GPU is needed.

    python scripts/kernel_table.py                       all 1050 (about half an hour on one core)
    python scripts/kernel_table.py --epilogues full      one epilogue; --bits, --architectures likewise
    python scripts/kernel_table.py --formats nvfp4 fp8-channel --epilogues full      floats, beside 16-bit activations

One line per kernel, as Markdown: registers per thread, shared bytes, programs on a multiprocessor, spilled bytes, and
the instruction that multiplies. Exit code 1 if any kernel spills, cannot be launched, or has no such instruction.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch

from natprec.formats import Integer, integer, parse_format
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.triton.ahead import ARCHITECTURES, Variant, compile_for
from natprec.runtime.kernels.triton.tiles import tiles

EPILOGUES = {
    "full": Epilogue("silu", gated=True, residual=True, output_scale=0.1),
    "none": Epilogue(),
    "relu": Epilogue("relu", output_scale=0.1),
    "gelu": Epilogue("gelu", output_scale=0.1),
    "gelu_tanh": Epilogue("gelu_tanh", output_scale=0.1),
}
TOKENS = {"decode": 16, "batch": 64, "prefill": 512}
"""Up to 64 tokens programs may share the columns of an output tile, and are compiled so."""


def main() -> int:
    """Compile, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)))
    parser.add_argument("--epilogues", nargs="+", choices=EPILOGUES, default=list(EPILOGUES))
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--formats", nargs="+", choices=FLOAT_WEIGHTS, default=[], help="instead of integers")
    chosen = parser.parse_args()
    weights = [parse_format(name) for name in chosen.formats] or [integer(bits, 64, False) for bits in chosen.bits]
    print("| weights | activations | epilogue | tokens | architecture | registers | shared | programs | spilled | by |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    bad = 0
    dtypes = (torch.float16,) if chosen.formats else (torch.float16, torch.int8)
    for name, arch, fmt, (phase, tokens), dtype in itertools.product(
        chosen.epilogues, chosen.architectures, weights, TOKENS.items(), dtypes
    ):
        shared = phase != "prefill"
        variant = Variant(fmt, dtype, EPILOGUES[name], biased=name == "full", shared=shared)
        codes, fine = dtype == torch.int8, bool(chosen.formats)
        tile = tiles(tokens, ARCHITECTURES[arch].capability, fmt.bits, codes, fine)[0]
        built = compile_for(variant, tile, arch)
        fits = built.programs >= 1 and built.shared <= ARCHITECTURES[arch].shared_per_program
        bad += bool(built.local) or not fits or not built.tensor_core
        cells = (
            f"W{fmt.bits}" if isinstance(fmt.codebook, Integer) else fmt.name,
            "A8" if dtype == torch.int8 else "A16",
            variant.epilogue.name,
            phase,
            arch,
            built.registers,
        )
        more = (f"{built.shared:,}", built.programs, built.local, built.tensor_core)
        print("| " + " | ".join(map(str, cells + more)) + " |", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
