"""Counts what `measure` and `round` ask of a device, by segment and batch; prints JSON. For a process of its own.

    python -m tests.far.counted                 # cases of a tiny llama, counted on the device of `tests.far.device`

The figures of one case are of one block: the operations launched from its first batch to its end, the copies in that
time, and how often the CPU waits in a batch that is neither the first nor the last.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from tests.far import device

KEEP = device.register()

from natprec.formats import Format  # noqa: E402
from natprec.measurement.measure import measure  # noqa: E402
from natprec.measurement.subject import Subject  # noqa: E402
from natprec.measurement.sweep import sweep  # noqa: E402
from natprec.models.hidden_states import HiddenStates  # noqa: E402
from natprec.rounding.apply import rounded_in_order  # noqa: E402
from natprec.utils import matmul  # noqa: E402
from tests.arrange import subject, tokens  # noqa: E402

matmul.multiplies_bfloat16 = lambda _: False

SEQUENCES, LENGTH, VOCABULARY = 12, 256, 1024
"""Three batches."""

LAYERS, BLOCK = 3, 1
"""The one in the middle: what is copied to the device once for all segments is there already."""


def far_subject(**changes: Any) -> Subject:
    """A tiny llama on the device."""
    model = subject(vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **changes).model.to(device.NAME)
    model.tie_weights()
    return Subject.in_memory(model, None, "small")


def measured(formats: int, sites: tuple[str, ...] = (), rounding: str = "gptq") -> dict[str, Any]:
    """What measuring a block asks for.

    Args:
        formats: of each site.
        sites: ends of the names of those that are measured; default: all.
    """
    one = far_subject()
    chosen = [site for site in one.sites if not sites or site.name.endswith(sites)]
    candidates = {name: some[:formats] for name, some in one.candidates(_profile(), 32).items()}
    marks: list[tuple[str, dict[str, Any]]] = []
    with device.counting() as counts:
        sweep(
            one.segmented, chosen, candidates, tokens(SEQUENCES, LENGTH, VOCABULARY).to(device.NAME),
            scale_dtype=one.storage_dtype, seed=0, rounding=rounding, gauges=one.gauges,
            advance=lambda step: marks.append((step, counts.to_json())),
            save=lambda state: marks.append((f"saved {state.segment + 1}", counts.to_json())),
        )  # fmt: skip
    return _of_block(marks, f"saved {BLOCK + 1}", f"{one.segmented.block_names[BLOCK]} backward", f"saved {BLOCK}")


def rounded(formats: list[Format], sites: tuple[str, ...] = ()) -> dict[str, Any]:
    """What rounding a block by GPTQ asks for; its sites take the formats in turn."""
    one = far_subject()
    chosen = [site for site in one.sites if not sites or site.name.endswith(sites)]
    wanted: dict[str, Format | None] = {site.name: None for site in one.sites}
    wanted |= {site.name: formats[number % len(formats)] for number, site in enumerate(chosen)}
    choices = {name: SimpleNamespace(format=fmt, scaled=False) for name, fmt in wanted.items()}
    plan: Any = SimpleNamespace(sites=choices)
    marks: list[tuple[str, dict[str, Any]]] = []
    with device.counting() as counts:
        states = HiddenStates(one.segmented, tokens(SEQUENCES, LENGTH, VOCABULARY).to(device.NAME))
        for segment, _ in rounded_in_order(
            one.segmented, one.sites, plan, states, "gptq", one.storage_dtype,
            lambda step: marks.append((step, counts.to_json())),
        ):  # fmt: skip
            marks.append((f"rounded {segment}", counts.to_json()))
    return _of_block(marks, f"rounded {BLOCK - 1}", f"{BLOCK} forward", f"rounded {BLOCK}")


def _profile() -> Any:
    from natprec.formats.engines import engine_profile

    return engine_profile("vllm")


def _of_block(marks: list[tuple[str, dict[str, Any]]], before: str, batch: str, after: str) -> dict[str, Any]:
    by_name = dict(marks)
    batches = [counts for name, counts in marks if name == batch]
    start, end = by_name[before], by_name[after]
    names = {name: end["by_name"][name] - start["by_name"].get(name, 0) for name in end["by_name"]}
    return {
        "operations": end["operations"] - start["operations"],
        "transfers": end["up"] + end["down"] - start["up"] - start["down"],
        "waits": end["waits"] - start["waits"],
        "waits_per_batch": batches[1]["waits"] - batches[0]["waits"],
        "operations_per_batch": batches[1]["operations"] - batches[0]["operations"],
        "by_name": dict(sorted(names.items(), key=lambda item: -item[1])),
    }


def differences() -> dict[str, float]:
    """How far a measurement on the device is from the CPU's: over the largest value of each curve; and how many of
    GPTQ's shares are another by more than 0.001."""
    near, text = subject(vocab_size=VOCABULARY), tokens(4, LENGTH, VOCABULARY)
    model = subject(vocab_size=VOCABULARY).model.to(device.NAME)
    model.tie_weights()
    far = Subject.in_memory(model, None, "small")
    first, second = (measure(one, some, group_size=32) for one, some in ((near, text), (far, text.to(device.NAME))))
    found = {"forward": 0.0, "backward": 0.0}
    shares = []
    for name, curve in first.curves.items():
        other = second.curves[name]
        for part in found:
            expected, actual = getattr(curve, part), getattr(other, part)
            found[part] = max(found[part], float(abs(expected - actual).max() / abs(expected).max()))
        shares += (abs(curve.shares - other.shares) > 1e-3).tolist()
    return found | {"shares that differ": sum(shares) / len(shares)}


MLP = ("gate_proj", "up_proj", "down_proj")


def main() -> None:
    """All cases."""
    candidates = next(iter(far_subject().candidates(_profile(), 32).values()))
    cases = {
        "measure 7 sites 2 formats": measured(2),
        "measure 7 sites 7 formats": measured(7),
        "measure 3 sites 7 formats": measured(7, MLP),
        "measure rtn 7 sites 7 formats": measured(7, rounding="rtn"),
        "round 7 sites 1 format": rounded(list(candidates[2:3])),
        "round 7 sites 7 formats": rounded(list(candidates)),
        "round 3 sites 1 format": rounded(list(candidates[2:3]), MLP),
    }
    json.dump({"cases": cases, "differences": differences()}, sys.stdout)


if __name__ == "__main__":
    main()
