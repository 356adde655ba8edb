"""The stages of `gpu_main_job` for one model in one place: a process of its own, one line of JSON for each stage.

    python -m scripts.gpu_stages FOLDER --device cuda --weights disk --tokens 8192 --scratch DIR [--profile]

A stage that fails says why, and those that need it are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from natprec.config import QuantizeConfig
from natprec.evaluation import verify as judge
from natprec.measurement.measure import measure
from natprec.models.devices import usable_device
from natprec.models.loading import load_model
from natprec.pipeline import rounded
from natprec.pipeline.request import open_subject
from natprec.rounding.apply import rounded_segments
from natprec.runtime.generate import Sampling, write
from natprec.runtime.load import Runnable, load
from natprec.tasks import Samples
from natprec.utils.atomic_files import new_folder
from natprec.utils.progress import Stages
from scripts.sweep_cost import one_pass

BITS = 4.5
"""Of the plan."""

STAGES = ("plain", "measure", "solve", "round", "write", "load", "generate", "bf16", "verify", "learned")
"""In their order."""

TOP = 10
"""Operations that a profile names."""

PREFILL, DECODED = 2048, 64
"""Tokens of a prompt, and those written after it."""


class Moved(TorchDispatchMode):
    """Counts the bytes that go between the CPU and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "copy_", "_pin_memory"):
            source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
            if isinstance(source, Tensor) and isinstance(result, Tensor) and source.device.type != result.device.type:
                self.bytes += min(source.nbytes, result.nbytes)
        return result


class Job:
    """The stages in their order, and what they leave to each other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.scratch = options, options.scratch
        self.cuda = torch.device(options.device).type == "cuda"
        self.config = QuantizeConfig(
            str(options.folder), device=options.device, weights=options.weights, tokens=options.tokens,
            length=options.length, group_size=options.group_size, transforms="auto",
        )  # fmt: skip
        self.subject = open_subject(self.config, Stages(quiet=True))
        vocabulary, draw = self.subject.model.config.vocab_size, torch.Generator().manual_seed(0)
        count = max(1, options.tokens // options.length)
        ids = torch.randint(vocabulary, (count, options.length), generator=draw)
        self.samples = Samples.text(ids).to(options.device)
        self.done: set[str] = set()

    def run(self) -> None:
        """All of them."""
        needs: dict[str, tuple[str, ...]] = {
            "solve": ("measure",), "round": ("solve",), "learned": ("solve",), "write": ("solve",), "load": ("write",),
            "generate": ("load",), "verify": ("write",),
        }  # fmt: skip
        for name in self.options.stages:
            missing = [each for each in needs.get(name, ()) if each not in self.done]
            if missing:
                _say({"stage": name, "status": f"not run: it needs {missing[0]}"})
                continue
            _say({"stage": name, "status": "begins"})
            self._stage(name, getattr(self, name))

    def _stage(self, name: str, work: Callable[[], dict[str, Any] | None]) -> None:
        _forget_peaks(self.cuda)
        moved, profile = Moved(), _profiled(self.options.profile, self.cuda)
        start = time.perf_counter()
        try:
            # beside a profile, which has the copies, counting would be most of what it shows
            with profile as seen, contextlib.nullcontext() if self.options.profile else moved:
                more = work() or {}
            if self.cuda:
                torch.cuda.synchronize()
            status = "done"
            self.done.add(name)
        except Exception as error:  # a stage that fails must not hide what the others took
            more, status, seen = {}, f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", None
        taken = {"seconds": time.perf_counter() - start, "moved_bytes": moved.bytes} | _peaks(self.cuda)
        top = {} if seen is None else {"top": _top(seen, self.cuda)}
        if more.get("not_run") is not None:
            _say({"stage": name, "status": f"not run: {more['not_run']}"})
            return
        _say({"stage": name, "status": status, **taken, **more, **top})

    def plain(self) -> dict[str, Any]:
        """One forward and backward of the same tokens, where the weights are in memory: the sweep's yardstick."""
        if not self.subject.segmented.weights.whole:
            return {"not_run": "weights are not on the device"}
        return {"pass_seconds": one_pass(self.subject.model, self.samples, self.subject.segmented.gathering)}

    def measure(self) -> dict[str, Any]:
        """All weights at all widths."""
        stages = Stages(quiet=True)
        self.measurement = measure(self.subject, self.samples, self.config, stages=stages)
        return {"parts": dict(stages.seconds), "sites": len(self.measurement.curves)}

    def solve(self) -> None:
        """For a size."""
        self.plan = self.measurement.solve(bits=BITS)

    def round(self) -> None:
        """By GPTQ, to nowhere."""
        self._round("gptq")

    def learned(self) -> None:
        """Learned rounding, to nowhere."""
        self._round("learned")

    def _round(self, rounding: str) -> None:
        with self.subject.segmented.weights.hold([]):
            for _ in rounded_segments(self.subject, self.plan, self.samples, rounding):
                pass

    def write(self) -> dict[str, Any]:
        """A checkpoint rounded to nearest, which takes no time beside writing."""
        self.out = self.scratch / "rounded"
        with new_folder(self.out, True) as folder:
            rounded.round_and_write(self.subject, self.plan, None, "rtn", folder, None, Stages(quiet=True))
        return {"stored_bytes": sum(file.stat().st_size for file in self.out.iterdir())}

    def load(self) -> dict[str, Any]:
        """For running."""
        self.runnable = load(self.out, device=self.options.device)
        return {"resident_bytes": self.runnable.resident_bytes}

    def generate(self) -> dict[str, Any]:
        """A prompt, then token by token."""
        return self._speed(self.runnable)

    def bf16(self) -> dict[str, Any]:
        """The same of the unrounded model, as bfloat16."""
        if not self.subject.segmented.weights.whole:
            return {"not_run": "weights are not on the device"}
        loaded: Any = load_model(str(self.options.folder), device=self.options.device)
        dense = loaded.model.to(torch.bfloat16)
        return self._speed(Runnable(dense, loaded.tokenizer, {}, loaded.task, usable_device(self.options.device)))

    def _speed(self, runnable: Runnable) -> dict[str, Any]:
        longest = runnable.model.config.max_position_embeddings - DECODED - 1
        prompt = self.samples.ids.flatten()[: min(PREFILL, longest, self.samples.tokens)].tolist()
        runnable.model.generation_config.eos_token_id = -1  # random weights end where they please
        write(runnable, prompt[:32], 4, Sampling(greedy=True))  # what is compiled or loaded at first use
        written = write(runnable, prompt, DECODED, Sampling(greedy=True))
        return {
            "prefill_tokens_per_second": written.prefill_tokens_per_second,
            "decode_tokens_per_second": written.tokens_per_second,
        }

    def verify(self) -> dict[str, Any]:
        """Against the original, on the same random tokens: only the time counts."""
        found = judge.verify(
            self.out, self.subject, self.samples, self.plan, rounding="rtn", stages=Stages(quiet=True),
            data="random tokens", eval_tokens=self.samples.tokens,
        )  # fmt: skip
        return {"tokens": found.tokens}


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _forget_peaks(cuda: bool) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks(cuda: bool) -> dict[str, int]:
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    host = {"peak_host_bytes": 1024 * int(found[1]) if found else 0}
    return host | ({"peak_gpu_bytes": torch.cuda.max_memory_reserved()} if cuda else {})


@contextlib.contextmanager
def _profiled(wanted: bool, cuda: bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=kinds) as seen:
        yield seen


def _top(seen: Any, cuda: bool) -> list[dict[str, Any]]:
    """The operations that took most of the device's time, or of the CPU's."""
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, field))[:TOP]
    return [{"name": row.key, "calls": row.count, "seconds": getattr(row, field) / 1e6} for row in rows]


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", choices=("memory", "disk"), default="memory")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    start = time.perf_counter()
    job = Job(parser.parse_args())
    _say({"stage": "open", "status": "done", "seconds": time.perf_counter() - start})
    job.run()


if __name__ == "__main__":
    main()
