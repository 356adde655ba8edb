"""What a tolerance means to answers: flips of SmolLM2-135M-Instruct at several eps, and whether the answers are right.

    python scripts/eval_figures.py --data valid.txt --eval-data test.raw.txt --tasks-data FOLDER --work DIR
    python scripts/eval_figures.py … --part checkpoints        # one part; the others: eval, itself, backends, lm-eval

The model is dequantized from Q4_1. Parts that DIR has already are not run again, so a killed run goes on.

    checkpoints   one measurement on --data; for each eps a plan, its checkpoint and its verification on --eval-data
    eval          `natprec eval` of each checkpoint
    itself        `natprec eval` of the original against itself
    backends      the answers of one checkpoint by transformers and by natprec's runtime
    lm-eval       the accuracy of original and checkpoint by `lm-eval run`, in a process of its own
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
EPS = ("0.3", "0.05", "0.01")
JUDGED = "0.05"
"""The eps of the checkpoint that both backends and lm-eval run."""

TASKS = "lambada,arc_easy,piqa"


@dataclass(frozen=True)
class Run:
    """Where things are, and how many documents of each task are asked."""

    model: str
    work: Path
    data: Path
    eval_data: Path
    tasks_data: Path
    limit: int

    def checkpoint(self, eps: str) -> Path:
        """The folder of a tolerance's checkpoint."""
        return self.work / f"eps-{eps}"

    def natprec(self, *arguments: object) -> None:
        """A command in a process of its own."""
        subprocess.run([sys.executable, "-m", "natprec", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    def base(self) -> Path:
        """The float values of the GGUF file, as a folder."""
        folder = self.work / "base"
        if not (folder / "config.json").is_file():
            from natprec.models.loading import load_model

            loaded = load_model(self.model)
            loaded.tokenizer.save_pretrained(folder)
            loaded.model.save_pretrained(folder)
        return folder


def checkpoints(run: Run) -> None:
    """Measure once, then solve, apply and verify for each eps."""
    measured = run.work / "measurement.safetensors"
    if not measured.exists():
        run.natprec("measure", "--model", run.model, "--data", run.data, "--out", measured)
    for eps in EPS:
        plan, folder = run.work / f"plan-{eps}.json", run.checkpoint(eps)
        if not (folder / "verification.json").is_file():
            run.natprec("solve", measured, "--eps", eps, "--out", plan, "--overwrite")
            run.natprec("apply", plan, "--model", run.model, "--data", run.data, "--out", folder, "--overwrite")
            run.natprec("verify", folder, "--model", run.model, "--eval-data", run.eval_data)


def evaluated(run: Run, folder: Path, name: str) -> None:
    """`natprec eval`, with its duration."""
    out, started = run.work / f"{name}.json", time.perf_counter()
    if out.is_file():
        return
    given = ("--tasks", TASKS, "--tasks-data", run.tasks_data, "--limit", run.limit)
    run.natprec("eval", folder, "--model", run.model, *given, "--out", out)
    (run.work / f"{name}.seconds").write_text(f"{time.perf_counter() - started:.0f}")


def each_eps(run: Run) -> None:
    """The coarsest first."""
    for eps in EPS:
        evaluated(run, run.checkpoint(eps), f"eval-{eps}")


def itself(run: Run) -> None:
    """The original as a checkpoint of itself."""
    evaluated(run, run.base(), "eval-itself")


def backends(run: Run) -> None:
    """One checkpoint, twice: decompressed, and on its codes."""
    from dataclasses import asdict

    from natprec.benchmark.run import asked, compared
    from natprec.checkpoints.dense_reader import load_quantized
    from natprec.models.trust import tokenizer_of
    from natprec.runtime.load import load
    from natprec.utils.progress import Stages

    out, folder, started = run.work / "backends.json", run.checkpoint(JUDGED), time.perf_counter()
    if out.is_file():
        return
    tasks = compared(
        load_quantized(folder), load(folder).model, tokenizer_of(folder, False), asked(TASKS, run.tasks_data),
        limit=run.limit, stages=Stages(),
    )  # fmt: skip
    found = {"seconds": time.perf_counter() - started, "tasks": [asdict(task) for task in tasks]}
    out.write_text(json.dumps(found, indent=1))


def lm_eval(run: Run) -> None:
    """lm-eval's own command on both folders."""
    import yaml

    from natprec.benchmark.tasks import tasks_named

    folder = run.work / "tasks"
    folder.mkdir(exist_ok=True)
    names = []
    for task in tasks_named(TASKS, run.tasks_data):
        assert isinstance(task.task, dict)
        names.append(f"own_{task.name}")  # lm-eval has tasks of the plain names
        (folder / f"{names[-1]}.yaml").write_text(yaml.safe_dump({**task.task, "task": names[-1]}))
    for name, model in (("base", run.base()), (JUDGED, run.checkpoint(JUDGED))):
        out = run.work / f"lm-eval-{name}"
        if any(out.rglob("results*.json")):
            continue
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "8"]
        command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(folder)]
        command += ["--tasks", *names, "--limit", str(run.limit), "--output_path", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


PARTS: dict[str, Callable[[Run], None]] = {
    "checkpoints": checkpoints,
    "eval": each_eps,
    "itself": itself,
    "backends": backends,
    "lm-eval": lm_eval,
}


def main() -> None:
    """Run what is missing, then print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text to measure on")
    parser.add_argument("--eval-data", type=Path, required=True, help="text to verify on")
    parser.add_argument("--tasks-data", type=Path, required=True, help="lambada_openai, arc_easy and piqa as .jsonl")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--limit", type=int, default=200, help="documents of each task")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    options = parser.parse_args()
    run = Run(options.model, options.work, options.data, options.eval_data, options.tasks_data, options.limit)
    run.work.mkdir(parents=True, exist_ok=True)
    for name in options.part or PARTS:
        PARTS[name](run)
    raise SystemExit(0 if shown(run) else 1)


def shown(run: Run) -> bool:
    """Print tables of what there is; False: something is not as it must be."""
    good = True
    flips: list[int] = []
    print("| eps | measured KL | task | base | quantized | difference, 95 % | flips | answers changed | KL answers |")
    print("|---|---|---|---|---|---|---|---|---|")
    for eps in EPS:
        found = _read(run.work / f"eval-{eps}.json")
        if found is None:
            continue
        kl = json.loads((run.checkpoint(eps) / "verification.json").read_text())["kl_mean"]
        flips.append(sum(task["flips_to_wrong"] + task["flips_to_right"] for task in found["tasks"]))
        for task in found["tasks"]:
            low, high = task["ci95"]
            print(
                f"| {eps} | {kl:.4f} | {task['name']} | {task['base']:.3f} | {task['quantized']:.3f} "
                f"| {task['difference']:+.3f} ({low:+.3f} to {high:+.3f}) "
                f"| {task['flips_to_wrong']} / {task['flips_to_right']} | {task['answers_changed']} "
                f"| {task['kl_answers']:.4f} |"
            )
        print(f"{eps}: {flips[-1]} flips, {(run.work / f'eval-{eps}.seconds').read_text()} s")
    good &= flips == sorted(flips, reverse=True)
    own = _read(run.work / "eval-itself.json")
    if own is not None:
        count = sum(task["flips_to_wrong"] + task["flips_to_right"] for task in own["tasks"])
        changed = sum(task["answers_changed"] for task in own["tasks"])
        print(f"the original against itself: {count} flips, {changed} answers changed")
        good &= count == changed == 0
    both = _read(run.work / "backends.json")
    if both is not None:
        for task in both["tasks"]:
            same = 1 - task["answers_changed"] / task["n"]
            print(f"backends, eps {JUDGED}, {task['name']}: {same:.2%} of {task['n']} answers are the same")
            good &= same >= 0.99
    for name, key in (("base", "base"), (JUDGED, "quantized")):
        theirs, ours = _lm_eval_results(run.work / f"lm-eval-{name}"), _read(run.work / f"eval-{JUDGED}.json")
        if theirs is not None and ours is not None:
            off = max(abs(task[key] - theirs[f"own_{task['name']}"]["acc,none"]) for task in ours["tasks"])
            print(f"accuracy of {name} against lm-eval run: {off:.1e} apart at most")
            good &= off <= 1e-9
    return good


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def _lm_eval_results(folder: Path) -> dict[str, Any] | None:
    files = sorted(folder.rglob("results*.json"))
    return json.loads(files[-1].read_text())["results"] if files else None


if __name__ == "__main__":
    main()
