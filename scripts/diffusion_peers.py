"""A diffusion transformer at equal bytes: natprec against SDNQ, bitsandbytes, torchao and GGUF.

    python scripts/diffusion_peers.py dit-emoji --prompts dit-emoji/classes.txt --packages PEERS

`dit-emoji` is what `scripts/trained_pipeline.py` writes. PEERS is a folder of the peers (`pip install --no-deps
--target PEERS sdnq bitsandbytes torchao gguf`); sdnq is GPL-3.0, and each peer runs in a process of its own, which
saves the weights that it reconstructs and counts the bytes that it stores. natprec then gets as many bytes for the same
weights. What a peer leaves at 16 bits counts 2 bytes for natprec too, which leaves embeddings so as well unless
`--embeddings` is given.

Judged on calls of the pipeline with other noise and classes: D = |o - o'|² / |o|² of the predicted noise, and the mean
squared difference of images in [0, 1] from equal seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMPONENT = "transformer"
IMAGES = 32
FLOAT_BYTES = 2

PEERS: dict[str, dict[str, Any]] = {
    "sdnq uint4": {"weights_dtype": "uint4"},
    "sdnq uint4, SVD": {"weights_dtype": "uint4", "use_svd": True},
    "sdnq dynamic from uint4": {"weights_dtype": "uint4", "use_dynamic_quantization": True},
    "sdnq uint3": {"weights_dtype": "uint3"},
    "sdnq dynamic from uint3": {"weights_dtype": "uint3", "use_dynamic_quantization": True},
    **{
        f"sdnq dynamic, loss {loss:g}": {
            "weights_dtype": "uint2",
            "use_dynamic_quantization": True,
            "dynamic_loss_threshold": loss,
        }
        for loss in (1e-2, 3e-3, 1e-3)
    },
    "bitsandbytes nf4": {},
    "torchao int4, groups of 32": {},
    "torchao int8": {},
    "gguf Q4_0": {},
    "gguf Q4_1": {},
}


def by_sdnq(module: Any, name: str) -> dict[str, tuple[Any, int]]:
    """Weight → what it is reconstructed as, and its bytes."""
    from sdnq import sdnq_post_load_quant

    made = sdnq_post_load_quant(module, torch_dtype=next(module.parameters()).dtype, **PEERS[name])
    found = {}
    for place, each in made.named_modules():
        if not hasattr(each, "sdnq_dequantizer"):
            continue
        stored = {key: getattr(each, key, None) for key in ("weight", "scale", "zero_point", "svd_up", "svd_down")}
        dense = each.sdnq_dequantizer(
            stored["weight"], stored["scale"], zero_point=stored["zero_point"], svd_up=stored["svd_up"],
            svd_down=stored["svd_down"], skip_compile=True,
        )  # fmt: skip
        found[f"{place}.weight"] = dense, bytes_of(*stored.values())
    return found


def by_bitsandbytes(module: Any, name: str) -> dict[str, tuple[Any, int]]:
    """NF4 in blocks of 64, as diffusers loads it."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found = {}
    for place, weight in linears(module):
        codes, state = quantize_4bit(weight.data, blocksize=64, quant_type="nf4")
        found[place] = dequantize_4bit(codes, state), bytes_of(codes, state.absmax)
    return found


def by_torchao(module: Any, name: str) -> dict[str, tuple[Any, int]]:
    """Its integers of weights alone."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    four = "int4" in name
    config = IntxWeightOnlyConfig(torch.int4, PerGroup(32)) if four else Int8WeightOnlyConfig()
    quantize_(module, config)
    found = {}
    for place, weight in linears(module):
        codes, scale = weight.qdata, weight.scale
        width = 0.5 if four else 1  # it holds four bits in a byte each until it packs them for a kernel
        found[place] = weight.dequantize(), int(codes.numel() * width) + bytes_of(scale)
    return found


def by_gguf(module: Any, name: str) -> dict[str, tuple[Any, int]]:
    """What llama.cpp's Python package makes of it."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind, found = GGMLQuantizationType[name.partition(" ")[2]], {}
    for place, weight in linears(module):
        codes = quantize(weight.detach().float().numpy(), kind)
        found[place] = torch.from_numpy(dequantize(codes, kind)), codes.nbytes
    return found


def linears(module: Any) -> list[tuple[str, Any]]:
    """Those that 32 divides; all peers leave the others."""
    import torch

    return [
        (f"{place}.weight", each.weight)
        for place, each in module.named_modules()
        if isinstance(each, torch.nn.Linear) and each.in_features % 32 == 0
    ]


def bytes_of(*tensors: Any) -> int:
    """Of those that are there."""
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)


def peer(name: str, pipeline: str, out: str) -> None:
    """Run in the peer's process."""
    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    loaded = DiffusionPipeline.from_pretrained(pipeline, torch_dtype=torch.float16, trust_remote_code=False)
    module = getattr(loaded, COMPONENT).requires_grad_(False)
    with torch.no_grad():
        found = globals()[f"by_{name.split()[0]}"](module, name)
    save_file({place: dense.detach().float().contiguous() for place, (dense, _) in found.items()}, out)
    print(json.dumps({place: count for place, (_, count) in found.items()}))


class Judge:
    """A pipeline, its text and its judge."""

    def __init__(self, options: argparse.Namespace) -> None:
        from natprec.comparison.candidates import linears_only
        from natprec.config import QuantizeConfig
        from natprec.data.pipeline_calls import default_steps
        from natprec.data.seen import pieces_of
        from natprec.pipeline.quantize import opened_run
        from natprec.pipeline.samples import held_out_samples
        from natprec.utils.progress import Stages
        from natprec.utils.seeds import derived

        self.config = QuantizeConfig(
            options.pipeline, component=COMPONENT, bits=4.0, prompts=options.prompts, steps=options.steps,
            engine="diffusers", seed=options.seed, eval_tokens=options.eval_tokens, rounding=options.rounding,
        )  # fmt: skip
        stages = Stages()
        self.run = opened_run(self.config, Path(options.work), True, stages)
        self.subject = self.run.subject
        self.part = self.subject.task
        self.held_out = held_out_samples(self.config, self.subject, stages, pieces_of(self.run.samples))
        found = self.run.measured(False)
        self.measurement = found if options.embeddings else linears_only(found)
        assert hasattr(self.part, "asked")
        self.asked = self.part.asked.chosen(IMAGES, "held-out", True)
        self.seeds = [derived(2 * options.seed + 1, number) for number in range(IMAGES)]
        self.steps = self.part.steps or default_steps(self.part.pipeline)
        self.expected = [self.subject.segmented.output(batch) for batch in self.held_out.split()]
        self.images = self._images()

    def _images(self) -> Any:
        from natprec.data.pipeline_calls import run_pipeline

        return run_pipeline(self.part, self.asked, self.seeds, self.steps).images.float()

    def judged(self, values: dict[str, Any]) -> dict[str, float]:
        """D, its interval and the images' difference where these weights have these values."""
        from natprec.evaluation.verification import compare
        from natprec.models.weights import present_values, put_in

        subject, reference = self.subject, iter(self.expected)
        present = present_values(subject.model)
        given = {name: values.get(name, value).reshape(value.shape) for name, value in present.items()}
        with put_in(subject.model, given):
            found = compare(
                lambda _: next(reference), subject.segmented.output, self.held_out, distortion=subject.distortion
            ).summary()
            error = float((self._images() - self.images).square().mean())
        low, high = found["kl_ci95"]
        return {"D": found["kl_mean"], "low": low, "high": high, "images": error}

    def natprec(self, bits: float) -> dict[str, float]:
        """The plan of so many bits per weight, rounded and judged."""
        from dataclasses import replace

        from natprec.models.weights import present_values
        from natprec.pipeline.rounded import round_to_plan

        plan = self.run.solved(replace(self.config, bits=bits), self.measurement)
        subject = self.subject
        with subject.segmented.weights.hold(subject.model.parameters()):
            round_to_plan(subject, plan, self.run.samples, self.config.rounding, self.run.stages)
            values = {name: value.clone() for name, value in present_values(subject.model).items()}
        return self.judged(values) | {"predicted": plan.kl_predicted, "bits": plan.bits_per_weight}


def main() -> None:
    """Each peer, then natprec at its bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline")
    parser.add_argument("--prompts")
    parser.add_argument("--packages", type=Path, help="where the peers are installed, if not here")
    parser.add_argument("--peers", default=";".join(PEERS), help="some of them, separated by ;")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eval-tokens", type=int, default=16384)
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embeddings", action="store_true", help="natprec's too, which peers leave at 16 bits")
    parser.add_argument("--work", default="diffusion-peers")
    options = parser.parse_args()
    import torch
    from safetensors.torch import load_file
    from sdnq_check import peer_environment

    judge = Judge(options)
    curves = judge.measurement.weights.values()
    elements = {f"{curve.site.name}.weight": curve.site.elements for curve in curves if curve.formats}
    total = sum(elements.values())
    environment = peer_environment(options.packages)
    print(
        f"{len(elements)} weights, {total} values, {judge.held_out.tokens} positions judge, {IMAGES} images", flush=True
    )
    for name in options.peers.split(";"):
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "dense.safetensors"
            command = [sys.executable, __file__, "--peer", name, options.pipeline, str(file)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            counts, dense = json.loads(done.stdout.splitlines()[-1]), load_file(file)
        assert counts.keys() <= elements.keys(), sorted(counts.keys() - elements.keys())
        stored = {weight: FLOAT_BYTES * count for weight, count in elements.items()} | counts
        bits = 8 * sum(stored.values()) / total
        with torch.no_grad():
            theirs = judge.judged(dense)
        ours = judge.natprec(bits)
        row = {"peer": name, "bits": bits, "weights_in_codes": len(counts), **theirs, "natprec": ours,
               "ratio": ours["D"] / theirs["D"], "ratio_images": ours["images"] / theirs["images"]}  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:5])
    else:
        main()
