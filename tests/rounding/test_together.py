"""Rounding shared out: any number of workers chooses the codes of one. Workers are threads, with a model each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.errors import InputError
from natprec.measurement.measure import measure
from natprec.models.hidden_states import HiddenStates
from natprec.models.shares import Share
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor
from natprec.rounding.apply import rounded_segments
from natprec.rounding.learned import STEPS, Learner
from natprec.rounding.moments import segment_moments
from natprec.solver import Plan
from natprec.utils.workers import Workers
from tests.arrange import tokens
from tests.measurement.test_sharding import built, shared, together

LENGTH, SEQUENCES = 16, 12
TEXT = tokens(SEQUENCES, LENGTH)


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 3 * LENGTH)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return measure(built(tie_word_embeddings=True), TEXT, group_size=32).solve(bits=4.2)


def rounded(
    workers: Workers, plan: Plan, rounding: str, products: torch.dtype = torch.float32, **options: Any
) -> dict[str, QuantizedTensor]:
    subject = shared(workers, tie_word_embeddings=True)
    subject.segmented.products = products
    found: dict[str, QuantizedTensor] = {}
    for _, codes in rounded_segments(subject, plan, TEXT, rounding, **options):
        found |= codes
        for name, each in codes.items():
            assert torch.equal(subject.model.get_submodule(name).weight, each.dequantize()), "what its codes say"
    return found


def same_share(ours: dict[str, QuantizedTensor], theirs: dict[str, QuantizedTensor]) -> float:
    assert list(ours) == list(theirs)
    same = sum(int((ours[name].codes == theirs[name].codes).sum()) for name in theirs)
    return same / sum(codes.codes.numel() for codes in theirs.values())


@pytest.mark.parametrize(("rounding", "size"), [("rtn", 2), ("gptq", 2), ("gptq", 3), ("yaqa", 4)])
def test_the_codes_of_one_process(plan: Plan, rounding: str, size: int) -> None:
    alone = rounded(Workers(), plan, rounding)
    results = together(size, lambda workers: rounded(workers, plan, rounding))
    for found in results:
        assert same_share(found, results[0]) == 1.0, "all hold the same weights"
        for name, codes in alone.items():
            assert torch.equal(found[name].scale, codes.scale)
        assert same_share(found, alone) == 1.0


def distance(codes: dict[str, QuantizedTensor]) -> float:
    """Mean squared distance of the logits from the original's."""
    made, rounded_one = built(tie_word_embeddings=True), built(tie_word_embeddings=True)
    for name, each in codes.items():
        rounded_one.model.get_submodule(name).weight.data = each.dequantize()
    return float((made.segmented.output(TEXT) - rounded_one.segmented.output(TEXT)).square().mean())


@pytest.mark.parametrize(("size", "products"), [(2, torch.float32), (3, torch.float32), (2, torch.bfloat16)], ids=str)
def test_learned_codes_are_as_good(plan: Plan, size: int, products: torch.dtype) -> None:
    """They are others: a sum in another order flips a code a step earlier, and all that follows."""
    alone, gptq = rounded(Workers(), plan, "learned", products), rounded(Workers(), plan, "gptq", products)
    results = together(size, lambda workers: rounded(workers, plan, "learned", products))
    for found in results:
        assert same_share(found, results[0]) == 1.0, "all hold the same weights"
    one, many, before = map(torch.tensor, (distance(alone), distance(results[0]), distance(gptq)))
    assert one < before, "learning helps"
    torch.testing.assert_close(many, one, rtol=0.1 if products == torch.float32 else 0.2, atol=0)


@pytest.mark.parametrize("rounding", ["gptq", "learned"])
def test_bytes_sent_by_segment(plan: Plan, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the formula in docs/large-models.md; a block that 100 steps have not made better takes 100 more."""
    size, times, counts = 3, Counter[str](), Counter[str]()
    learned = Learner._learned

    def counted(self: Learner, segment: int, *rest: Any) -> Any:
        if self._segmented.workers.first:
            times[f"trial {self._segmented.block_names[segment]}"] += 1
        return learned(self, segment, *rest)

    monkeypatch.setattr(Learner, "_learned", counted)

    def sent(workers: Workers) -> tuple[Counter[str], list[Site]]:
        subject = shared(workers, tie_word_embeddings=True)
        for _ in rounded_segments(subject, plan, TEXT, rounding, stage="trial"):
            pass
        return workers.sent, subject.sites

    results = together(size, sent)
    for own, _ in results:
        counts += own
    sites = results[0][1]
    for block in range(2):
        stage = f"trial model.layers.{block}"
        members = [site for site in sites if site.segment == block and plan.sites[site.name].format is not None]
        assert members
        assert times[stage] in ((1, 2) if rounding == "learned" else (0,))
        moments = 8 * sum({site.fused_group: site.shape[1] ** 2 for site in members}.values())
        codes = sum(site.elements * (1 + 4 / 32) for site in members)
        steps = times[stage] * STEPS * 8 * sum(site.elements for site in members)
        headers = 1024 * size * (size - 1)  # of the codes, which weigh nothing beside a model's
        assert counts[stage] == pytest.approx((size - 1) * (moments + codes + steps), rel=0.02, abs=headers)


def test_workers_round_different_groups(plan: Plan) -> None:
    """Of three, none has all moments, and each has those of one process, to the last bit: no order decides."""
    counts: dict[int, int] = {}
    known: dict[str, torch.Tensor] = {}

    def counted(workers: Workers) -> None:
        subject = shared(workers, tie_word_embeddings=True)
        states = HiddenStates(subject.segmented, TEXT)
        states.through(-1)
        members = [site for site in subject.sites if site.gptq and site.segment == 0]
        moments = segment_moments(subject.segmented, members, states, 0, None)
        if workers.size == 1:
            known.update(moments.inputs)
            return
        assert all(torch.equal(sums, known[group]) for group, sums in moments.inputs.items())
        counts[workers.rank] = len(moments.inputs)
        assert len(moments.inputs) + len(moments.elsewhere) == len({site.fused_group for site in members})

    counted(Workers())
    together(3, counted)
    assert sum(counts.values()) == 4
    assert all(counts.values())
    assert max(counts.values()) < 4


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sample_is_somebodys(size: int, divided: bool) -> None:
    shares = [Share.of(TEXT, Workers(rank, size), divided) for rank in range(size)]
    assert sorted(number for share in shares for number in share.numbers) == list(range(SEQUENCES))
    for share in shares:
        assert [len(share.take(TEXT)[batch]) for batch in share.batches] == [len(part) for part in share.own.values()]
        assert share.whole == (range(3), range(3, 6), range(6, 9), range(9, 12))
    counts = [len(share.numbers) for share in shares]
    assert max(counts) - min(counts) <= (1 if divided and size < 5 else 3)


def test_more_processes_than_work_are_refused() -> None:
    with pytest.raises(InputError, match="12 sequences are work for 4 processes, and there are 5; raise --tokens, or"):
        Share.of(TEXT, Workers(0, 5)).refuse_idle()
    Share.of(TEXT, Workers(0, 5), divided=True).refuse_idle()


@pytest.mark.parametrize("rounding", ["gptq", "learned"])
@pytest.mark.parametrize("then", [1, 3])
def test_another_number_goes_on(tmp_path: Path, plan: Plan, rounding: str, then: int) -> None:
    """What two have kept after a block serves any number."""

    def until(workers: Workers) -> None:
        subject = shared(workers, tie_word_embeddings=True)
        for segment, _ in rounded_segments(subject, plan, TEXT, rounding, tmp_path):
            if segment == 1:
                raise Killed

    with pytest.raises(Killed):
        together(2, until)
    alone = rounded(Workers(), plan, rounding)
    for found in together(then, lambda workers: rounded(workers, plan, rounding, resume_folder=tmp_path)):
        left = {name: codes for name, codes in alone.items() if "layers.0." not in name}
        assert found.keys() == left.keys()
        assert rounding == "learned" or same_share(found, left) == 1.0
