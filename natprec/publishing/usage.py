"""How to run a published checkpoint, how to make it again, what it does not promise, and its terms."""

from __future__ import annotations

import shlex

from natprec.evaluation.verification import Verification
from natprec.publishing.contents import Contents
from natprec.publishing.front_matter import base_of, folder_task, is_causal
from natprec.publishing.markdown import block, code, section, table, text
from natprec.publishing.sections import original
from natprec.utils.records import PICTURES

PLACE = "NAMESPACE/NAME"
"""What stands for the repository where none is known yet."""


def repository(contents: Contents) -> str:
    """As a command names it, without a branch."""
    return PLACE if contents.published is None else contents.published.repository


def at_revision(contents: Contents) -> str:
    """As natprec's commands name it."""
    branch = "main" if contents.published is None else contents.published.revision
    return repository(contents) if branch == "main" else f"{repository(contents)}@{branch}"


def run_it(contents: Contents) -> str:
    """One command for each engine that the plan's profile says can load it."""
    plan = contents.plan
    name, branch = repository(contents), at_revision(contents).partition("@")[2]
    revision = f" --revision {branch}" if branch else ""
    parts: list[str] = []
    if contents.gguf:
        parts += ["llama.cpp:", block(f"llama-server -hf {name}")]
        parts += ["Ollama:", block(f"ollama run hf.co/{name}")]
        return section("Run it", *parts)
    if plan.engine in ("vllm", "sglang") and is_causal(contents):
        needs = "" if plan.needs is None else f" {plan.needs.engine_version} or newer, planned for {plan.needs.gpu}"
        command = (
            f"vllm serve {name}{revision}" if plan.engine == "vllm"
            else f"python -m sglang.launch_server --model-path {name}{revision}"
        )  # fmt: skip
        parts += [f"{'vLLM' if plan.engine == 'vllm' else 'SGLang'}{needs}:", block(command)]
    if plan.engine != "natprec" and (plan.needs is None or plan.needs.transformers):
        task = folder_task(contents)
        loader = (
            task.family if task is not None
            else "AutoModelForImageTextToText" if contents.sees
            else "AutoModelForCausalLM" if is_causal(contents) else "AutoModel"
        )  # fmt: skip
        given = f', revision="{branch}"' if branch else ""
        how = "which decompresses the weights: quality, not speed"
        how = "with bitsandbytes, also to fine-tune it (QLoRA)" if plan.engine == "bitsandbytes" else how
        parts += [
            f"transformers, {how}:",
            block(f'from transformers import {loader}\n\nmodel = {loader}.from_pretrained("{name}"{given})', "python"),
        ]
    if is_causal(contents) and plan.engine != "bitsandbytes":
        parts += [
            "natprec, on the codes themselves:",
            block(f'natprec generate {at_revision(contents)} --prompt "Why is the sky blue?"'),
        ]
    return section("Run it", *parts)


def reproduce(contents: Contents) -> str:
    """The commands that made and judged it, with versions and digests."""
    plan, found = contents.plan, contents.verification
    made = plan.provenance
    parts = []
    if made is not None:
        parts.append(block(made.command))
        rows = [("original", original(contents)), ("digest of its weights", code(made.model_digest))]
        calibration = made.calibration
        if calibration is not None:
            tokens = calibration.sequences * calibration.length
            rows.append(("calibration text", f"{tokens:,} tokens of {code(calibration.name)}"))
            rows.append(("digest of its token ids", code(calibration.tokens_digest)))
        rows += [("seed", str(made.seed)), ("device", text(made.device)), ("date", text(made.date))]
        rows.append(("versions", ", ".join(f"{text(name)} {text(each)}" for name, each in made.versions.items())))
        parts.append(table(("", ""), rows))
    base = base_of(contents)
    reference = shlex.quote(f"{base.id}@{base.revision}" if base is not None else plan.model)
    if found is not None:
        data = _judged_on(found)
        parts += [
            "Judge it again:",
            block(f"natprec verify {at_revision(contents)} --model {reference}{data}"),
        ]
    if contents.header is not None:
        parts += [
            "Another tolerance, from the measurement that lies beside, in milliseconds:",
            block(f"natprec solve {at_revision(contents)} --eps 0.02 --out plan.json"),
        ]
    return section("Reproduce it", *parts)


def _judged_on(found: Verification) -> str:
    """The options that name the texts which judged; none for those that nobody gave."""
    names = [text.name for text in found.texts] or [found.data]
    seen = next((name.removeprefix(PICTURES) for name in names if name.startswith(PICTURES)), None)
    given = next((name for name in names if not name.startswith(("written", "ordinary", PICTURES))), None)
    data = f" --eval-data {shlex.quote(given)}" if given else ""
    return data + (f" --images {shlex.quote(seen)}" if seen else "")


def limits(contents: Contents) -> str:
    """What the figures do not say."""
    found = contents.verification
    lines = [
        "- The promise is about text like that which judged. Other languages, code or long contexts were not measured, "
        "unless the table above names them.",
        "- A small distortion says that answers change little, not that they are right.",
    ]
    if not contents.gguf and contents.plan.engine in ("vllm", "sglang") and contents.plan.gpu is None:
        lines.append(
            "- Which kernel an engine chooses depends on its version and the GPU: "
            f"{code(f'natprec check {at_revision(contents)} --gpu h100')} tells."
        )
    if found is not None and contents.promise is None:
        lines.append("- A size was asked for, and no tolerance: the figures are what that size costs, not a promise.")
    return section("Limits", "\n".join(lines))


def licence(contents: Contents) -> str:
    """The original's terms hold on."""
    base = base_of(contents)
    files = ", ".join(code(name) for name in contents.licences)
    if base is not None and base.license is not None:
        called = text(base.license_name or base.license)
        link = f" ({text(base.license_link)})" if base.license_link else ""
        said = f"That of the original: {called}{link}."
    else:
        said = (
            "That of the original. natprec has not read which one that is: look it up before you use or publish this."
        )
    return section("Licence", said + (f" Its text is in {files}." if files else ""))
