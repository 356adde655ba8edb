"""natprec itself, through the functions that a notebook uses, with their defaults.

It gets the bytes of the target's weight files and the same calibration tokens as the peers, of which it learns, with
text that the model writes, where it is given no other text. For vLLM it plans all that
vLLM's code runs on the GPU, seen to load or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

PACKAGES = {"natprec": "natprec", "compressed-tensors": "compressed_tensors"}


def quantize(job: Any, model: Any, ids: Tensor) -> Any:
    """Measure, solve for the size, round."""
    from natprec.comparison.candidates import linears_only, with_formats
    from natprec.formats import engine_profile
    from natprec.measurement.beside import other_entries
    from natprec.pipeline.api import apply, measure
    from natprec.solver.site_costs import named_bytes

    engine, tokenizer = job.settings["engine"], job.tokenizer()
    if all(tensor.equal(tensor.to(job.dtype).float()) for tensor in model.parameters()):
        model.to(job.dtype)  # says which 16 bits the original had
    sites = "weights" if job.activations == 16 else "all"
    gpu = job.settings.get("gpu")
    measurement = measure(
        model, tokenizer, ids, engine=engine, rounding=job.settings["rounding"], group_size=job.group_size, sites=sites,
        gpu=gpu, untested=gpu is not None, seed=job.seed,
    )  # fmt: skip
    if job.settings.get("linear"):
        measurement = linears_only(measurement)
    if job.settings.get("formats"):
        measurement = with_formats(measurement, job.settings["formats"])
    beside = measurement.header.carried_bytes  # --max-size is of the whole folder, the target of the weights' files
    if job.settings.get("formats"):  # their uniform checkpoint has as long a header, and leaves no room below it
        beside += named_bytes(measurement, engine_profile(engine))
    else:
        beside -= other_entries(model, [curve.site for curve in measurement.weights.values()])
    plan = measurement.solve(max_size=job.max_bytes + beside, engine=engine, activations=str(job.activations))
    return apply(
        plan, model, tokenizer, ids, other=job.other_ids(), learn_tokens=job.settings["learn_tokens"], seed=job.seed
    )


def save(job: Any, done: Any, folder: Path) -> None:
    """The checkpoint that `natprec quantize` writes."""
    from natprec.pipeline.api import save as write

    folder.rmdir()
    write(done, folder)


def dense(job: Any, done: Any, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The folder loaded as its engine sees it."""
    from natprec.checkpoints.dense_reader import load_quantized

    for name, value in load_quantized(folder, job.settings["engine"], job.trust_remote_code).state_dict().items():
        if not name.rpartition(".")[2].startswith("weight_"):  # scales and shapes stay beside the weights
            yield name, value


def report(job: Any, done: Any) -> dict[str, Any]:
    """The prediction, beside what is measured, and the mean natural precision (T17)."""
    return {"kl_predicted": done.plan.kl_predicted, "natural_bits": done.plan.natural_bits}
