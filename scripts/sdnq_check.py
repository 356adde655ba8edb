"""What plain diffusers makes of a pipeline with codes for it, against natprec's own reading: the largest difference.

    python scripts/sdnq_check.py FOLDER [--sdnq PLACE]

sdnq (`pip install --no-deps --target PLACE sdnq`) is GPL-3.0: it runs in a process of its own, which loads the
pipeline with `DiffusionPipeline.from_pretrained` and saves the weights that sdnq reconstructs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from natprec.checkpoints.pipeline_reader import load_part
from natprec.checkpoints.pipelines import quantized_part

PEER = """
import sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, trust_remote_code=False)
found = {}
for name, module in getattr(pipeline, sys.argv[2]).named_modules():
    if hasattr(module, "sdnq_dequantizer"):
        dense = module.sdnq_dequantizer(module.weight, module.scale, zero_point=module.zero_point)
        found[name + ".weight"] = dense.detach().float().contiguous().clone()
save_file(found, sys.argv[3])
"""


def peer_environment(packages: Path | None) -> dict[str, str]:
    """Of a process that imports peers from a folder, which come before what is installed; nothing is compiled there."""
    paths = [str(packages)] if packages else []
    places = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "SDNQ_USE_TORCH_COMPILE": "0", "PYTHONPATH": places}


def main() -> None:
    """Compare, and print one line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--sdnq", type=Path, help="where sdnq is installed, if not here")
    given = asked.parse_args()
    name = quantized_part(given.folder)
    if name is None:
        sys.exit(f"{str(given.folder)!r} is no pipeline of natprec's")
    environment = peer_environment(given.sdnq)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "dense.safetensors"
        subprocess.run([sys.executable, "-c", PEER, str(given.folder), name, str(file)], check=True, env=environment)
        theirs = load_file(file)
    ours = load_part(given.folder, name).state_dict()
    largest = max(float((ours[key] - each.reshape(ours[key].shape)).abs().max()) for key, each in theirs.items())
    print(f"{len(theirs)} weights of {name}, largest difference {largest:g}")


if __name__ == "__main__":
    main()
