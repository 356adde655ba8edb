"""Is what `natprec compare` judges what the peers compute? Run with the interpreter that has the peers.

    python scripts/peer_exactness.py --model FOLDER --methods rtn,gptq,awq,smoothquant,modelopt,nf4,int8,autoround

For each method: quantize on random tokens, then compare two models in float32: the peer's own forward,
and plain Linear layers with the weights that the worker leaves to the judge. Prints the largest difference
of logits, beside the largest logit change that quantizing made.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PEERS = Path(__file__).parents[1] / "natprec" / "comparison" / "peers"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("llmcompressor", {"recipe": name}) for name in ("rtn", "gptq", "awq", "smoothquant")},
    "modelopt": ("modelopt", {}),
    "nf4": ("bitsandbytes", {"kind": "nf4"}),
    "int8": ("bitsandbytes", {"kind": "int8"}),
    "autoround": ("autoround", {"iterations": 2}),
}


def load(file: Path) -> Any:
    """A module by its path, as the worker does it."""
    spec = importlib.util.spec_from_file_location(file.stem + "_peer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def own_logits(name: str, job: Any, done: Any, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """The peer's own forward; AutoRound's packed layers have no kernel on every CPU: its file is unpacked."""
    if name == "autoround":
        done = job.load()
        done.load_state_dict(dict(unpacked(folder, job.group_size)), strict=False)
    return done(input_ids=ids, use_cache=False).logits.float()


def unpacked(folder: Path, group_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """GPTQ's packing at 4 bits: eight codes in an int32 along the inputs, zero points less one along the outputs."""
    from safetensors.torch import load_file

    shifts = torch.arange(0, 32, 4)
    tensors = load_file(folder / "model.safetensors")
    for name, packed in tensors.items():
        if name.endswith(".qweight"):
            base = name.removesuffix("qweight")
            codes = (packed[:, None, :] >> shifts[None, :, None] & 15).flatten(0, 1)
            zeros = (tensors[base + "qzeros"][:, :, None] >> shifts & 15).flatten(1) + 1
            zeros, scales = (
                part.repeat_interleave(group_size, 0) for part in (zeros, tensors[base + "scales"].float())
            )
            yield base + "weight", ((codes - zeros) * scales).T.contiguous()
        elif not name.endswith((".qzeros", ".scales")):
            yield name, tensors[name].float()


@torch.no_grad()
def main() -> None:
    """One line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", default=",".join(CASES))
    options = parser.parse_args()
    worker = load(PEERS / "worker.py")
    for name in options.methods.split(","):
        peer, settings = CASES[name]
        module = load(PEERS / f"{peer}.py")
        job = worker.Job(name, options.model, "", 4, 64, "float32", None, settings)
        model = job.load()
        ids = torch.randint(model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        plain = copy.deepcopy(model)
        before = plain(input_ids=ids).logits
        with torch.enable_grad():
            done = module.quantize(job, model, ids)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            module.save(job, done, folder)
            plain.load_state_dict(dict(module.dense(job, done, folder)), strict=False)
            own = own_logits(name, job, done, folder, ids)
        judged = plain(input_ids=ids).logits
        print(
            f"{name:12} judged - own {float((judged - own).abs().max()):.2e}   "
            f"judged - original {float((judged - before).abs().max()):.2e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
