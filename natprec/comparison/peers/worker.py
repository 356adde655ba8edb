"""One method's process: load the model, quantize, save, and leave the weights to be judged.

    python worker.py JOB_FOLDER PEER_FILE

starts in that folder, reads `job.json` and the files it names, writes `checkpoint/`, `dense.safetensors` and last,
when all is well or the error is known, `result.json`. A process that dies leaves no result; the parent says how.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """A method's task, which the parent writes to `job.json`.

    Attributes:
        model: folder of the reference, float32, seen from the job's folder; of 'module' as its user has it.
        calibration: safetensors file with `input_ids`, (sequences, length), int64; seen from there too. Empty: none.
        bits: of uniform methods, and on average over weights (scales not counted) of the others.
        storage_dtype: in which tensors that stay unquantized are stored: bfloat16 or float16.
        max_bytes: of the weight files, for methods that aim at a size.
        settings: the method's own.
        kind: 'causal', 'encoder' (without a head), or 'module': of the class that `settings` names.
        seed: of what the method draws.
        more: a file like that of `calibration`, with more windows of the same text; None: there is none.
        activations: bits to which the judge rounds the inputs of Linears, by token; 16: not at all.
    """

    method: str
    model: str
    calibration: str
    bits: int
    group_size: int
    storage_dtype: str
    max_bytes: int | None
    settings: dict[str, Any]
    trust_remote_code: bool = False
    kind: str = "causal"
    activations: int = 16
    seed: int = 0
    more: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of `storage_dtype`."""
        return getattr(torch, self.storage_dtype)

    def ids(self) -> Tensor | None:
        """(sequences, length) calibration tokens, if there are any."""
        return read_ids(self.calibration) if self.calibration else None

    def other_ids(self) -> Tensor | None:
        """(sequences, length) tokens of the rest of the text, where the method is given some."""
        return None if self.more is None else read_ids(self.more)

    def load(self, **arguments: Any) -> Any:
        """The reference model, float32 unless told otherwise."""
        from transformers import AutoModel, AutoModelForCausalLM

        if self.kind == "module":
            made = getattr(importlib.import_module(self.settings["library"]), self.settings["class"])
            return made.from_pretrained(self.model, trust_remote_code=self.trust_remote_code).eval()
        arguments = {"dtype": torch.float32, **arguments}
        family = AutoModelForCausalLM if self.kind == "causal" else AutoModel
        return family.from_pretrained(self.model, trust_remote_code=self.trust_remote_code, **arguments).eval()

    def tokenizer(self) -> Any:
        """The reference's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model, trust_remote_code=self.trust_remote_code)


def read_ids(file: str) -> Tensor:
    """(sequences, length) of a file of tokens."""
    from safetensors.torch import load_file

    return load_file(file)["input_ids"]


def run(folder: Path, peer_file: Path) -> dict[str, Any]:
    """Carry out `folder/job.json` with a peer; the fields of `result.json`."""
    from safetensors.torch import save_file

    job = Job(**json.loads((folder / "job.json").read_text()))
    peer = load_peer(peer_file)
    packages = peer.packages(job) if hasattr(peer, "packages") else peer.PACKAGES
    for module in packages.values():
        importlib.import_module(module)  # importing is not quantizing: outside the timed part
    model, ids = job.load(), job.ids()
    reference = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tied = list(model._tied_weights_keys or ()) if getattr(model.config, "tie_word_embeddings", False) else []
    torch.manual_seed(job.seed)
    start = time.perf_counter()
    done = peer.quantize(job, model, ids)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    peer.save(job, done, checkpoint)
    store_in_half(checkpoint, reference, job.dtype, getattr(peer, "HALF", ""))
    weights = {name: tensor.float().contiguous() for name, tensor in peer.dense(job, done, checkpoint)}
    embedding = weights.get(embedding_name(model)) if tied else None
    for name in tied:
        if embedding is not None and name in weights and weights[name].equal(embedding):
            del weights[name]  # its twin is there
    save_file(weights, folder / "dense.safetensors")
    return {
        "status": "ok",
        "seconds": seconds,
        "peak_bytes": peak,
        "versions": {name: version(name) for name in ("torch", "transformers", *packages)},
        **getattr(peer, "report", lambda job, done: {})(job, done),
    }


def embedding_name(model: Any) -> str:
    """Of the input embedding's weight in the model's state."""
    embedding = model.get_input_embeddings()
    return next((f"{name}.weight" for name, module in model.named_modules() if module is embedding), "")


def version(package: str) -> str:
    """The version of an installed distribution; a source folder on the path has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source folder"


def load_peer(file: Path) -> Any:
    """The module in a file; it is in no package that the peer's environment would have to know."""
    spec = importlib.util.spec_from_file_location(f"peer_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def store_in_half(folder: Path, reference: dict[str, Any], dtype: torch.dtype, pattern: str) -> None:
    """Store at 16 bits what users, who load a model at 16 bits, would find stored so.

    The peers compute in float32 here, the best that they can do. That concerns the tensors that the
    peer left as they were and those whose name matches the peer's `HALF`: scales.
    """
    from safetensors.torch import load_file, save_file

    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        halved = {}
        for name, tensor in tensors.items():
            kept = name in reference and tensor.shape == reference[name]
            if tensor.dtype == torch.float32 and (kept or (pattern and re.search(pattern, name))):
                halved[name] = tensor.to(dtype)
        if halved:  # else the file stays as it was written, with its metadata
            save_file(tensors | halved, file, metadata={"format": "pt"})
    config = folder / "config.json"
    if config.is_file():
        value = json.loads(config.read_text())
        config.write_text(json.dumps({**value, "dtype": str(dtype).removeprefix("torch.")}, indent=2))


def peak_bytes() -> int:
    """The most memory this process has held; ru_maxrss would count the parent's before exec as well."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def die_with(parent: int) -> None:
    """End this process and what it started once the parent is gone: nobody waits for the result."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)  # this process leads a group of its own


def main() -> None:
    """Always leave a result that says what happened; the traceback goes to the log."""
    folder = Path(sys.argv[1])
    threading.Thread(target=die_with, args=(os.getppid(),), daemon=True).start()
    sys.path.pop(0)  # this folder: its files have the names of the packages that they use
    try:
        result = run(folder, Path(sys.argv[2]))
    except Exception as error:
        traceback.print_exc()
        missing = isinstance(error, ModuleNotFoundError)
        lines = str(error).strip().splitlines() or [""]
        text = f"{'not installed' if missing else type(error).__name__}: {lines[0][:300]}"
        result = {"status": text}
    temporary = folder / "result.json.partial"
    temporary.write_text(json.dumps(result, indent=2))
    temporary.replace(folder / "result.json")


if __name__ == "__main__":
    main()
