"""The file is the model: plain transformers against the in-memory model, bytes against the forecast.

    python scripts/file_is_model.py --data valid.txt --measurement smollm2.measurement

Also times 20 solves from the measurement file. The checkpoint is loaded by a process that never
imports natprec.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from natprec.config import QuantizeConfig
from natprec.evaluation.verify import checkpoint_bytes
from natprec.measurement import Measurement
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan, write
from natprec.pipeline.samples import calibration_samples
from natprec.tasks import Samples
from natprec.utils.progress import Stages

READER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=False)
ids = load_file(sys.argv[2])["ids"]
with torch.no_grad():
    logits = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
assert not any(name.startswith("natprec") for name in sys.modules)
save_file({"logits": logits}, sys.argv[3])
"""


def main() -> None:
    """One engine after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--measurement", type=Path, required=True)
    parser.add_argument("--rounding", default="rtn")
    options = parser.parse_args()
    measurement = Measurement.load(options.measurement)
    start = time.perf_counter()
    for eps in np.geomspace(0.3, 0.01, 20):
        measurement.solve(eps=float(eps))
    print(json.dumps({"solves": 20, "seconds": time.perf_counter() - start}))
    for engine in ("vllm", "transformers"):
        stages = Stages(quiet=True)
        request = QuantizeConfig(options.model, eps=options.eps, data=options.data)
        subject = open_subject(request, stages)
        samples = calibration_samples(request, subject, stages) if options.rounding != "rtn" else None
        plan = measurement.solve(eps=options.eps, margin=0.05, engine=engine, rounding=options.rounding)
        quantized = round_to_plan(subject, plan, samples, options.rounding, stages)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "checkpoint"
            folder.mkdir()
            write(subject, plan, quantized, folder, stages)
            rows = torch.arange(4 * 256).view(4, 256) * 37 % subject.model.config.vocab_size
            save_file({"ids": rows}, Path(name) / "ids.safetensors")
            files = [str(folder), f"{name}/ids.safetensors", f"{name}/logits.safetensors"]
            subprocess.run([sys.executable, "-c", READER, *files], check=True, capture_output=True)
            theirs = load_file(files[2])["logits"]
            with torch.no_grad():
                ours = torch.cat([subject.segmented.output(row) for row in Samples.text(rows).split(1)])
            result = {
                "engine": engine,
                "largest_logit_difference": float((theirs - ours).abs().max()),
                "stored_bytes": checkpoint_bytes(folder),
                "forecast_bytes": plan.stored_bytes,
                "forecast_error": plan.stored_bytes / checkpoint_bytes(folder) - 1,
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
