"""The report: one file that needs nothing else, whose numbers are its sources' and whose slider is the solver."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from py_mini_racer import MiniRacer
from safetensors.numpy import save_file

from natprec.benchmark.result import Evaluation, TaskResult
from natprec.energy.opening import files_digest
from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT
from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.reporting.data import place_of
from natprec.reporting.page import page
from natprec.reporting.sources import gather
from natprec.solver import Plan, solve
from natprec.utils.provenance import Provenance
from tests.arrange import curve, measurement
from tests.run_command import natprec
from tests.speed import allowed

FORMATS = tuple(integer(bits, 64) for bits in range(2, 9))


def made_up(blocks: int = 3, seed: int = 0, prefix: str = "model", **changes: object) -> Measurement:
    """A model of so many blocks, curves of about 4^-b with noise; q, k and v are one fused group."""
    draw = np.random.default_rng(seed)
    curves = []
    for block in range(blocks):
        for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):
            name, first = f"{prefix}.layers.{block}.{kind}", f"{prefix}.layers.{block}.self_attn.q_proj"
            rows = int(draw.integers(1, 9)) * 64
            kl = [float(draw.lognormal() * rows / 64 * 4.0**-fmt.bits * draw.uniform(0.7, 1.4)) for fmt in FORMATS]
            fused = first if kind[10:] in ("q_proj", "k_proj", "v_proj") else None
            curves.append(curve(name, kl, FORMATS, shape=(rows, 128), fused_group=fused))
    return measurement(curves, **changes)


def judged(plan: Plan, **changes: object) -> Verification:
    made = Verification(
        eps=plan.eps, passed=True, kl_mean=0.0412, kl_ci95=(0.0391, 0.0447), kl_p99=0.3131,
        kl_predicted=plan.kl_predicted, perplexity_reference=38.404, perplexity_quantized=39.191,
        top1_agreement=0.8813, tokens=2048, stored_bytes=129_913_612, stored_bytes_reference=272_554_536,
        bits_per_weight=5.242, bits_per_weight_total=7.507, data="held <out>.txt", data_digest="c24f7f2a52d6524b",
        rounding="gptq", verdict="pass",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = made_up()
    plan = solve(made, 0.5)
    (tmp_path / "natprec").mkdir()
    plan.save(tmp_path / "plan.json")
    made.save(tmp_path / MEASUREMENT)
    judged(plan).save(tmp_path / "verification.json")
    return tmp_path


def block_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="natprec">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def solved_by_page() -> Callable[[dict[str, Any], dict[str, float]], Any]:
    """The page's solver, in a JavaScript engine."""
    engine = MiniRacer()
    engine.eval(files("natprec.reporting").joinpath("solver.js").read_text(encoding="utf-8"))

    def run(stairs: dict[str, Any], target: dict[str, float]) -> Any:
        return json.loads(engine.eval(f"JSON.stringify(solveStaircase({json.dumps(stairs)}, {json.dumps(target)}))"))

    return run


def formats_of(stairs: dict[str, Any], found: dict[str, Any]) -> dict[str, str]:
    pairs = zip(stairs["groups"], found["chosen"], strict=True)
    return {site: group["formats"][index] for group, index in pairs for site in group["sites"]}


def planned(plan: Plan) -> dict[str, str]:
    return {name: choice.format.name for name, choice in plan.sites.items() if choice.format}


@pytest.mark.parametrize("seed", range(4))
def test_the_slider_is_the_solver(checkpoint: Path, solved_by_page: Callable[..., Any], seed: int) -> None:
    made = made_up(blocks=6, seed=seed)
    solve(made, 0.5).save(checkpoint / "plan.json")
    made.save(checkpoint / MEASUREMENT)
    stairs = block_of(page(gather(checkpoint)))["stairs"]
    draw = np.random.default_rng(seed)
    smallest, largest = stairs["kl"][0] + stairs["lost"], stairs["kl"][-1]
    for eps in np.exp(draw.uniform(np.log(smallest), np.log(largest * 1.2), 20)):
        plan, found = solve(made, float(eps)), solved_by_page(stairs, {"eps": float(eps)})
        assert formats_of(stairs, found) == {
            name: choice.format.name for name, choice in plan.sites.items() if choice.format
        }
        assert found["bytes"] == plan.stored_bytes
        assert found["kl"] == pytest.approx(plan.kl_predicted, rel=1e-12)
        assert found["bits"] == pytest.approx(plan.bits_per_weight, rel=1e-12)
    for size in draw.uniform(stairs["stored"][-1], stairs["stored"][0], 10) + stairs["fixed"]:
        plan, found = solve(made, max_size=float(size)), solved_by_page(stairs, {"bytes": float(size)})
        assert formats_of(stairs, found) == {
            name: choice.format.name for name, choice in plan.sites.items() if choice.format
        }
    assert solved_by_page(stairs, {"eps": smallest * 0.9}) is None
    assert solved_by_page(stairs, {"bytes": stairs["stored"][-1] + stairs["fixed"] - 1}) is None


def test_numbers_are_those_of_the_files(checkpoint: Path) -> None:
    html = page(gather(checkpoint))
    data, plan = block_of(html), json.loads((checkpoint / "plan.json").read_text())
    verification = json.loads((checkpoint / "verification.json").read_text())
    for name, value in data["verification"].items():
        assert verification.get(name) == value  # a GPU is there if one was named
    for site in data["sites"]:
        assert {name: site[name] for name in plan["sites"][site["name"]]} == plan["sites"][site["name"]]
    for name in ("eps", "kl_predicted", "stored_bytes", "bits_per_weight", "kl_uniform"):
        assert data["plan"][name] == plan[name]
    shown = re.sub(r"<script.*?</script>|<style.*?</style>", "", html, flags=re.S)
    for figure in (
        "0.0412",
        "0.0391 to 0.0447",
        "38.404",
        "39.191",
        "+2.05%",
        "88.13%",
        "129.9 MB",
        "272.6 MB",
        "5.242",
    ):
        assert figure in shown


def test_the_page_needs_nothing_else_and_no_name_becomes_markup(checkpoint: Path) -> None:
    made = made_up(prefix="<script>alert(1)</script>")
    solve(made, 0.5).save(checkpoint / "plan.json")
    made.save(checkpoint / MEASUREMENT)
    html = page(gather(checkpoint))
    assert not re.search(r"""(src|href|action)=|url\(|@import|https?:""", html)
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert any(site["name"].startswith("<script>alert(1)</script>.layers.0") for site in block_of(html)["sites"])
    assert "held &lt;out&gt;.txt" in html


def test_equal_files_give_equal_bytes(checkpoint: Path) -> None:
    assert page(gather(checkpoint)) == page(gather(checkpoint))


def test_a_large_model_is_shown_within_two_seconds_and_three_megabytes(checkpoint: Path) -> None:
    made = made_up(blocks=340)  # 1,700 sites, as many as 80 blocks of 7 with experts
    solve(made, 50.0).save(checkpoint / "plan.json")
    made.save(checkpoint / MEASUREMENT)
    sources = gather(checkpoint)
    start = time.process_time()
    html = page(sources)
    assert time.process_time() - start < allowed(2)
    assert len(html.encode()) < 3_000_000


def test_files_of_other_models_are_refused_with_both_digests(checkpoint: Path) -> None:
    other = made_up(model_digest="ffff000011112222")
    other.save(checkpoint / MEASUREMENT)
    own = Plan.load(checkpoint / "plan.json").model_digest
    with pytest.raises(InputError, match=f"ffff000011112222.*{own}"):
        gather(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is no"),
        ('{"a": 1}', "no list 'rows'"),
        ('{"rows": [], "model_digest": "0123456789abcdef"}', "0123456789abcdef"),
    ],
)
def test_what_is_no_comparison_is_refused(checkpoint: Path, content: str, message: str) -> None:
    (checkpoint / "compared.json").write_text(content)
    with pytest.raises(InputError, match=message):
        gather(checkpoint, comparison=checkpoint / "compared.json")


def test_a_picture_with_a_script_is_refused(checkpoint: Path) -> None:
    (checkpoint / "inspection.json").write_text('{"boundaries": []}')
    (checkpoint / "graph.svg").write_text('<svg xmlns="x"><script>alert(1)</script></svg>')
    with pytest.raises(InputError, match="no picture"):
        gather(checkpoint, inspection=checkpoint / "inspection.json")


def test_a_verification_of_another_model_is_refused(checkpoint: Path) -> None:
    plan = Plan.load(checkpoint / "plan.json")
    made = Provenance({}, "now", "natprec verify", "cpu", 0, "another", "f" * 16)
    judged(plan, provenance=made).save(checkpoint / "verification.json")
    with pytest.raises(InputError, match=f"{'f' * 16}.*{plan.model_digest}"):
        gather(checkpoint)


def energy(rows: list[dict[str, Any]], **run: Any) -> dict[str, Any]:
    """What a report shows of energy.json."""
    return {"version": 1, "source": "ESTIMATE", "counter": None, "idle_watts": None, "rows": rows, "run": run}


def test_energy_of_another_checkpoint_or_version_is_refused(checkpoint: Path) -> None:
    (checkpoint / "energy.json").write_text(json.dumps({**energy([]), "version": 99}))
    with pytest.raises(InputError, match="has version 99"):
        gather(checkpoint)
    (checkpoint / "config.json").write_text("{}")
    save_file({"weight": np.zeros(2, np.float32)}, checkpoint / "model.safetensors")
    own = files_digest(checkpoint)
    (checkpoint / "energy.json").write_text(json.dumps(energy([], model_digest=own)))
    assert gather(checkpoint).energy is not None
    (checkpoint / "energy.json").write_text(json.dumps(energy([], model_digest="f" * 16)))
    with pytest.raises(InputError, match=f"{'f' * 16}.*{own}"):
        gather(checkpoint)


def test_other_files_fill_their_panels(checkpoint: Path) -> None:
    row = {
        "method": "gptq",
        "bits": 4,
        "status": "ok",
        "kl_mean": 0.1931,
        "kl_ci95": [0.18, 0.21],
        "stored_bytes": 114_000_000,
    }
    (checkpoint / "compare.json").write_text(json.dumps({"rows": [row, {"method": "awq", "status": "not installed"}]}))
    task = TaskResult("piqa", 200, "acc", 0.68, 0.665, -0.015, (-0.04, 0.01), 0.45, 7, 4, 11, 0.0325, 0.02)
    asked = Evaluation(
        "tiny", Plan.load(checkpoint / "plan.json").model_digest, "out", "natprec", 200, 0, "0.4", [task]
    )
    asked.save(checkpoint / "eval.json")
    run = {"phase": "decode", "batch": 1, "tokens_per_second": 184.0, "joules_per_token": [0.011, 0.061], "floor": None}
    (checkpoint / "energy.json").write_text(json.dumps(energy(rows=[run])))
    html = page(gather(checkpoint))
    for text in ("0.1931", "-0.015 (-0.040 to +0.010)", "ESTIMATE 0.011 to 0.061",
                 "lm-eval 0.4, at most 200 documents of each task, 0 shots; natprec ran the checkpoint.",
                 "no difference seen; 200 documents show differences from ±0.033 on"):  # fmt: skip
        assert text in html
    assert "awq" not in re.sub(r"<script.*?</script>", "", html, flags=re.S)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.7.mlp.up_proj", (7, "up_proj")),
        ("model.layers.7.mlp.experts.31.up_proj", (7, "experts.*.up_proj")),
        ("model.embed_tokens", (None, "embed_tokens")),
        ("lm_head", (None, "lm_head")),
    ],
)
def test_places(name: str, place: tuple[int | None, str]) -> None:
    assert place_of(name) == place


def test_the_command_writes_once_and_replaces_only_its_own(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert natprec("report", checkpoint, "--out", out).code == 0
    again = natprec("report", checkpoint, "--out", out)
    assert (again.code, "--overwrite" in again.err) == (2, True)
    assert natprec("report", checkpoint, "--out", out, "--overwrite", "--json").code == 0
    out.write_text("mine")
    assert natprec("report", checkpoint, "--out", out, "--overwrite").code == 2
    assert out.read_text() == "mine"
    nothing = natprec("report", tmp_path / "natprec", "--out", tmp_path / "other.html")
    assert (nothing.code, "plan" in nothing.err) == (2, True)
