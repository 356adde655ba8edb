"""A tied head, measured and written apart: for the engine that reads both packed, where the plan is better for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import natprec
from natprec.checkpoints.dense_reader import load_quantized
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.formats import engine_profile, integer
from natprec.formats.engines import GROUP_SIZES
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.pipeline import api
from natprec.pipeline.ladder import quantize_ladder
from natprec.solver import Plan
from natprec.solver.heads import head_tied
from natprec.solver.ladder import ladder
from tests.arrange import subject, tokens
from tests.conftest import tiny_model

UNTESTED = {"gpu": "any", "untested": True}


@pytest.fixture(scope="module")
def measured() -> tuple[Subject, Measurement]:
    """A small tied llama, for any GPU."""
    own = subject(vocab_size=512)
    found = api.measure(own.model, None, tokens(8, 16, 512), group_size=32, length=16, **UNTESTED)
    return own, found


def test_the_models_head_is_tied_again_after_measuring(measured: tuple[Subject, Measurement]) -> None:
    own, found = measured
    assert own.model.lm_head.weight is own.model.model.embed_tokens.weight
    assert own.model.config.tie_word_embeddings is True
    assert found.header.untied == "lm_head"
    assert {"lm_head", "model.embed_tokens"} <= found.weights.keys()


def test_apart_and_tied_are_the_same_function(measured: tuple[Subject, Measurement]) -> None:
    own, ids = subject(vocab_size=512), tokens(2, 16, 512)
    with torch.no_grad():
        expected = own.segmented.output(ids)
        apart = own.with_head(True)
        assert {site.role for site in apart.sites} == {"linear", "head", "embedding"}
        assert torch.equal(apart.segmented.output(ids), expected)
        tied = apart.with_head(False)
        assert torch.equal(tied.segmented.output(ids), expected)
    assert [site.name for site in tied.sites] == [site.name for site in own.sites]
    assert (tied.digest, apart.digest) == (own.digest, own.digest)


def test_a_plan_writes_them_apart_where_that_is_smaller(measured: tuple[Subject, Measurement]) -> None:
    """Within a tolerance the smaller plan wins; where even the widest packed ones cost too much, they stay tied."""
    _, found = measured
    plan = found.solve(eps=1.0)
    assert plan.untied
    assert plan.sites["lm_head"].format is not None
    assert plan.needs is not None
    assert any("(embedding)" in name for name in plan.needs.untested)
    exact = found.solve(max_size=plan.stored_bytes_reference)
    assert not exact.untied, "at 16 bits one tensor is stored for both, and no packed pair is as faithful"
    assert "lm_head" not in exact.sites
    assert exact.sites["model.embed_tokens"].format is None
    assert exact.stored_bytes_reference == plan.stored_bytes_reference
    portable = found.solve(eps=1.0, portable=True)
    assert not portable.untied
    assert all(choice.format is None or choice.format.symmetric for choice in portable.sites.values())


def test_the_smaller_of_both_is_taken_at_every_tolerance(measured: tuple[Subject, Measurement]) -> None:
    _, found = measured
    tied = head_tied(found)
    smallest = tied.solve(bits=16.0).kl_predicted
    chosen = set()
    for eps in np.geomspace(1.1 * smallest, 1000 * smallest, 40):
        plan, alone = found.solve(eps=float(eps), margin=0.0), tied.solve(eps=float(eps), margin=0.0)
        assert plan.stored_bytes <= alone.stored_bytes
        chosen.add(plan.untied)
    assert chosen == {True, False}


def test_a_packed_embedding_has_smaller_groups_too(measured: tuple[Subject, Measurement]) -> None:
    """They cost less; no other site has them, nor any without a GPU."""
    own, found = measured
    curve = found.curves["model.embed_tokens"]
    fine = [fmt for fmt in curve.formats if fmt.group_size == 16 and not fmt.floating]
    assert {fmt.name for fmt in fine} == {"int2-g16", "int4-g16", "int8-g16"}
    kl = dict(zip(curve.formats, curve.kl("rtn"), strict=True))
    assert kl[integer(4, 16)] < 0.9 * kl[integer(4, 32)]
    others = [each for name, each in found.weights.items() if name != "model.embed_tokens"]
    assert not any(fmt.group_size == 16 and not fmt.floating for each in others for fmt in each.formats)
    plain = own.candidates(engine_profile("natprec"), 32)
    assert not any(fmt.group_size == 16 for several in plain.values() for fmt in several)


def test_plan_and_measurement_come_back_from_files(measured: tuple[Subject, Measurement], tmp_path: Path) -> None:
    _, found = measured
    found.save(tmp_path / "m")
    again = Measurement.load(tmp_path / "m")
    assert again.header == found.header
    plan = again.solve(eps=1.0)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan == found.solve(eps=1.0)
    said = json.loads((tmp_path / "plan.json").read_text())
    assert (said["gpu"], said["untied"]) == ("any", True)
    assert set(said["needs"]) == {"engine_version", "gpu", "transformers", "untested"}


def test_without_a_gpu_no_file_speaks_of_one(tmp_path: Path) -> None:
    own = subject()
    found = api.measure(own.model, None, tokens(4, 16), group_size=32, length=16)
    found.solve(bits=5).save(tmp_path / "plan.json")
    assert not {"gpu", "needs", "untied"} & json.loads((tmp_path / "plan.json").read_text()).keys()
    assert not {"gpu", "untested", "portable", "untied"} & found.header.to_json().keys()


def test_a_ladder_has_rungs_with_the_head_apart(measured: tuple[Subject, Measurement]) -> None:
    _, found = measured
    rungs = {rung.eps: rung for rung in ladder(found)}
    coarsest = rungs[max(rungs)]
    plan = found.solve(eps=coarsest.eps)
    assert plan.untied
    assert coarsest.stored_bytes == plan.stored_bytes
    assert [rung.bits for rung in ladder(found, portable=True)] != [rung.bits for rung in rungs.values()]


def test_a_checkpoint_of_both_is_what_was_planned(measured: tuple[Subject, Measurement], tmp_path: Path) -> None:
    own, found = measured
    plan = found.solve(eps=1.0)
    ids = tokens(8, 16, 512)
    quantized = natprec.apply(plan, own.model, None, ids, length=16)
    natprec.save(quantized, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    targets = [each["targets"] for each in config["quantization_config"]["config_groups"].values()]
    assert any({"model.embed_tokens", "Embedding"} <= set(each) for each in targets), "vLLM gives it no name"
    with torch.no_grad():
        said = quantized.model(input_ids=ids.ids).logits
        judged = natprec.verify(tmp_path / "out", own.model, ids, length=16)
        loaded = load_quantized(tmp_path / "out")(input_ids=ids.ids).logits
    assert float((said - loaded).abs().max()) <= 1e-3
    assert judged.kl_mean <= 1.5 * plan.kl_predicted
    assert judged.gpu == "any"


def test_an_architecture_that_reads_no_packed_embedding_keeps_it() -> None:
    """Mixtral's embedding is not handed the config: it has no candidates, and the head stays tied."""
    profile, own = engine_profile("vllm", "any", untested=True), subject()
    assert own.gains_apart(profile)
    type(own.model).__name__, name = "MixtralForCausalLM", type(own.model).__name__
    try:
        assert not own.gains_apart(profile)
        assert own.candidates(profile, 32)["model.embed_tokens"] == ()
    finally:
        type(own.model).__name__ = name
    assert not own.gains_apart(engine_profile("vllm"))


def test_formats_that_a_shape_cannot_have_are_no_candidates() -> None:
    """Blocks of 128 need as many rows and columns; the zero points of a head fill whole words."""
    profile = engine_profile("vllm", "any", untested=True)
    own = Subject.in_memory(tiny_model(hidden_size=96, intermediate_size=256, vocab_size=97), None, "small")
    found = own.with_head(True).candidates(profile, 32)
    names = {site: {fmt.name for fmt in several} for site, several in found.items()}
    assert not any("block" in name for name in names["model.layers.0.mlp.down_proj"]), "96 rows"
    assert "int3-g32-asym" not in names["lm_head"], "97 rows of 3 bits are 9 words and 3 bits"
    assert "int3-g32" in names["lm_head"]
    assert "nvfp4" in names["model.layers.0.mlp.down_proj"]


def test_a_plan_of_a_gpu_refuses_what_that_does_not_run(measured: tuple[Subject, Measurement], tmp_path: Path) -> None:
    _, found = measured
    plan = found.solve(eps=1.0, gpu="sm90", untested=True)
    fmt = engine_profile("vllm", "sm80", untested=True)
    mxfp4 = next(each for each in fmt.measured(GROUP_SIZES) if each.name == "mxfp4")
    name = "model.layers.0.self_attn.o_proj"
    other = replace(plan, sites={**plan.sites, name: replace(plan.sites[name], format=mxfp4)})
    other.save(tmp_path / "plan.json")
    with pytest.raises(
        InputError, match="is mxfp4, which engine 'vllm' does not run on sm90; it does on sm80, sm86, sm89"
    ):
        Plan.load(tmp_path / "plan.json")


def test_sizes_with_and_without_the_head_apart_come_from_one_run(
    tiny_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """The model is put back after each size, whatever the last one did to its head."""
    config = QuantizeConfig(
        str(tiny_folder), data=str(text_file), tokens=256, eval_tokens=256, length=64, group_size=32, rounding="rtn",
        **UNTESTED,
    )  # fmt: skip
    rungs = {rung.name: rung for rung in quantize_ladder(config, (4.5, 8.25, 5.0), tmp_path / "out")}
    assert any(rung.plan.untied for rung in rungs.values())
    assert rungs["4.5bpw"].verification.kl_mean > rungs["5bpw"].verification.kl_mean
    assert rungs["5bpw"].verification.kl_mean > rungs["8.25bpw"].verification.kl_mean
    for rung in rungs.values():
        assert rung.verification.kl_mean <= 2 * rung.plan.kl_predicted + 1e-6
        assert rung.verification.gpu == "any"
        config_json = json.loads((tmp_path / "out" / rung.name / "config.json").read_text())
        assert config_json["tie_word_embeddings"] is not rung.plan.untied
