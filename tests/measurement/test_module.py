"""Any module, measured on samples: its convolutions are sites, and the sweep agrees with what replacing them costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import natprec
from natprec.distortions import OUTPUT
from natprec.measurement import Measurement
from natprec.solver.plan import Plan
from natprec.tasks import Samples


class Net(nn.Module):
    """Plain, depthwise, strided and transposed convolutions, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(32, 8, 4, stride=2, padding=1)
        self.last = nn.Linear(8, 12)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.down(self.depthwise(torch.relu(self.first(image)))))
        hidden = self.up(hidden) * scale.view(-1, 1, 1, 1)
        return {"sample": self.last(hidden.movedim(1, -1))}


def samples(count: int = 8) -> dict[str, Tensor]:
    return {"image": torch.randn(count, 3, 12, 12), "scale": torch.rand(count) + 0.5}


def test_the_sweep_agrees_with_replacing_each_convolution() -> None:
    net, given = Net(), samples()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    found = natprec.measure(net, samples=given)
    exact = natprec.measure(net, samples=given, estimator="exact")
    assert [curve.site.role for curve in found.curves.values()] == ["convolution"] * 4 + ["linear"]
    assert [curve.site.shape for curve in found.curves.values()] == [(16, 27), (16, 9), (32, 72), (8, 512), (12, 8)]
    ratios = np.concatenate([curve.kl() / exact.curves[name].kl() for name, curve in found.curves.items()])
    assert abs(np.log2(np.median(ratios))) < 0.6
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())


class InPlace(nn.Module):
    """Divides what a Linear gives by a number, in place or not, as Longformer does with its queries."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.in_place, self.first, self.last = in_place, nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.in_place:
            hidden /= 3
        else:
            hidden = hidden / 3
        return self.last(torch.tanh(hidden))


def test_a_model_may_change_what_its_layers_give() -> None:
    given = {"x": torch.randn(8, 4, 64)}
    one, other = (natprec.measure(InPlace(way), samples=given) for way in (True, False))
    for name, curve in one.curves.items():
        assert curve.kl().min() > 0
        np.testing.assert_allclose(curve.kl(), other.curves[name].kl(), rtol=1e-5)


def test_a_depthwise_convolution_may_stay_at_16_bits_and_a_file_says_so(tmp_path: Path) -> None:
    found = natprec.measure(Net(), samples=Samples.of(samples()))
    found.save(tmp_path / "measurement")
    again = Measurement.load(tmp_path / "measurement")
    assert again.curves["depthwise"].site == found.curves["depthwise"].site
    small = ("first", "depthwise", "last")
    least = sum(
        curve.unquantized_kl if name in small else float(curve.kl().min()) for name, curve in again.curves.items()
    )
    narrow, wide = again.solve(bits=3.0), again.solve(eps=1.01 * least)
    assert wide.sites["depthwise"].format is None
    assert wide.sites["depthwise"].stored_bytes == 2 * 16 * 9
    assert wide.sites["up"].format is not None, "it has more than 1,000 weights"
    assert narrow.stored_bytes < wide.stored_bytes
    wide.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == wide
    decided = wide.sites.values()  # also those that the solver left at 16 bits
    bits = 8 * sum(choice.stored_bytes for choice in decided) / sum(choice.elements for choice in decided)
    assert wide.bits_per_weight == pytest.approx(bits)


def test_a_distortion_of_one_s_own_is_taken_and_one_of_another_task_is_not() -> None:
    own = natprec.FeatureDistance(lambda net, given: net(**given.tensors)["sample"].flatten(1)[:, :2])
    assert natprec.measure(Net(), samples=samples(), distortion=own).header.distortion == "features"
    with pytest.raises(natprec.InputError, match="distortion 'kl' is for a causal language model; give one of your"):
        natprec.measure(Net(), samples=samples(), distortion="kl")


def test_what_a_module_cannot_be_measured_with() -> None:
    with pytest.raises(natprec.InputError, match="samples and text were given"):
        natprec.measure(Net(), None, "text.txt", samples=samples())
    with pytest.raises(natprec.InputError, match="transforms 'rotate' is for language models"):
        natprec.measure(Net(), samples=samples(), transforms="rotate")
    with pytest.raises(natprec.ModelError, match="has no Linear layer or convolution"):
        natprec.measure(nn.ReLU(), samples={"input": torch.randn(2, 3)})
    broken = Net()
    broken.first.weight.data[0] = float("nan")
    with pytest.raises(natprec.ModelError, match=r"first\.weight.*NaN"):
        natprec.measure(broken, samples=samples())


def test_the_distance_of_outputs_is_a_mean_of_squares() -> None:
    net, other, given = Net(), Net(), Samples.of(samples())
    with torch.no_grad():
        one, two = (OUTPUT.output(each, given) for each in (net, other))
        expected = (net(**given.tensors)["sample"] - other(**given.tensors)["sample"]).square().flatten(1).mean(1)
    torch.testing.assert_close(OUTPUT.between(one, two, given).squeeze(1).float(), expected)
