"""Image classifiers and encoders, from a folder and a folder of images to a checkpoint that is judged and reloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import natprec as api
from natprec.checkpoints.dense_reader import load_quantized
from natprec.config import QuantizeConfig
from natprec.data.images import read_images
from natprec.errors import InputError, ModelError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.models.loading import load_model
from natprec.pipeline import request
from natprec.pipeline.quantize import quantize
from natprec.solver import Plan
from natprec.utils.progress import Stages
from tests.image_models import MAKERS, SIDE, saved
from tests.run_command import left_behind, natprec
from tests.vision_language import pictures

EPS = 0.02
RUNS = {
    "vit": ("vit", "vllm"),
    "clip": ("clip", "vllm"),
    "mobilenet": ("mobilenet", "transformers"),
    "regnet": ("regnet", "natprec"),
}
Made = tuple[Path, Path, Measurement, Plan, Verification]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each."""
    folder = tmp_path_factory.mktemp("models")
    return {family: saved(family, folder / family) for family in MAKERS}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images."""
    return pictures(tmp_path_factory.mktemp("images") / "blocks", 96)


def config(model: Path, shown: Path, **options: Any) -> QuantizeConfig:
    """Half of the tolerance is held back: a dozen images scatter by as much."""
    held = {"margin": 0.5, **options}
    return QuantizeConfig(str(model), data=str(shown), eps=EPS, group_size=32, arithmetic="float32", **held)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, families: dict[str, Path], shown: Path) -> dict[str, Made]:
    """Checkpoints."""
    found = {}
    for name, (family, engine) in RUNS.items():
        out = tmp_path_factory.mktemp("made") / name.replace(" ", "-")
        found[name] = (families[family], out, *quantize(config(families[family], shown, engine=engine), out))
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(pixel_values=torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize("run", RUNS)
def test_the_promise_is_kept_on_images_that_were_not_measured_on(made: dict[str, Made], run: str) -> None:
    *_, measurement, plan, verification = made[run]
    assert verification.passed
    assert [text.name for text in verification.texts] == ["blocks"]
    assert verification.kl_mean <= EPS
    assert plan.bits_per_weight < 8
    assert verification.counted(verification.tokens) == (12, "images")  # half of those that are held out judge first
    assert measurement.header.sequences == 72
    assert verification.perplexity_reference is None
    assert (verification.top1_agreement is None) == (run == "clip")


@pytest.mark.parametrize("run", ["vit", "clip", "mobilenet"])
def test_plain_transformers_reloads_what_was_judged(made: dict[str, Made], run: str) -> None:
    import transformers

    folder, out, *_ = made[run]
    task = load_model(str(folder)).task
    plain = getattr(transformers, task.family).from_pretrained(out, dtype=torch.float32).eval()
    expected = output(load_quantized(out, tried=False))  # unpacked by natprec
    assert (output(plain) - expected).abs().max() <= 1e-5 * expected.abs().max()
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert processor.size == {"height": SIDE, "width": SIDE}


@pytest.mark.parametrize("run", ["vit", "clip", "mobilenet"])
def test_convolutions_stay_at_16_bits_where_the_container_has_no_codes_for_them(
    made: dict[str, Made], run: str
) -> None:
    _, out, measurement, plan, verification = made[run]
    kept = {name: curve.site for name, curve in measurement.weights.items() if curve.site.role == "convolution"}
    assert kept
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    tensors = stored(out)
    for name, site in kept.items():
        assert plan.sites[name].format is None
        assert plan.sites[name].stored_bytes == 2 * site.elements
        assert name in ignored
        assert tensors[f"{name}.weight"].dtype == torch.bfloat16
    assert abs(plan.stored_bytes - verification.stored_bytes) < 0.05 * plan.stored_bytes_reference + 20_000


def test_natprec_s_own_checkpoint_holds_convolutions_as_codes(made: dict[str, Made]) -> None:
    _, out, measurement, plan, _ = made["regnet"]
    convolutions = [name for name, curve in measurement.weights.items() if curve.site.role == "convolution"]
    coded = [name for name in convolutions if plan.sites[name].format is not None]
    assert len(coded) >= len(convolutions) // 2
    tensors = stored(out)
    for name in coded:
        assert f"{name}.weight_packed" in tensors
        assert f"{name}.weight" not in tensors
    expected = output(load_quantized(out, "natprec"))
    loaded = api.load(out)
    assert (output(loaded) - expected).abs().max() <= 1e-4 * expected.abs().max()  # its Linears sum in another order
    assert loaded.kernels[coded[0]].kernel == "dense"


def test_statistics_of_norms_stay_as_they_are(made: dict[str, Made]) -> None:
    folder, out, *_ = made["mobilenet"]
    with safe_open(folder / "model.safetensors", "pt") as opened:
        before = {name: opened.get_tensor(name) for name in opened.keys() if "running" in name}  # noqa: SIM118
    after = stored(out)
    assert before
    for name, each in before.items():
        assert torch.equal(after[name], each), name


def test_measure_solve_apply_and_verify_are_the_same_in_four_commands(
    made: dict[str, Made], shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, *_ = made["vit"]
    monkeypatch.chdir(tmp_path)
    same = ("--group-size", "32", "--arithmetic", "float32")
    for command in (
        ("measure", "--model", folder, "--data", shown, *same, "--out", "measured"),
        ("solve", "measured", "--eps", EPS, "--out", "plan.json"),
        ("apply", out / "plan.json", "--model", folder, "--data", shown, *same[2:], "--out", "applied"),
        ("verify", "applied", "--model", folder, "--eval-data", shown),
    ):
        told = natprec(*command)
        assert told.code == 0, told.err
    measured = Measurement.load(out / "natprec" / "measurement.safetensors")
    for name, curve in Measurement.load(tmp_path / "measured").weights.items():
        assert (curve.forward == measured.weights[name].forward).all(), name
    again, whole = stored(tmp_path / "applied"), stored(out)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_an_image_that_was_measured_on_does_not_judge_under_another_name(
    families: dict[str, Path], shown: Path, tmp_path: Path
) -> None:
    own = config(families["vit"], shown)
    subject = request.open_subject(own, Stages(quiet=True))
    from natprec.data.seen import pieces_of, source_digest

    measured = read_images(
        subject.tokenizer, str(shown), sequences=100, length=17, split="calibration", model=subject.model
    )
    other = tmp_path / "other"
    shutil.copytree(shown, other)
    assert source_digest(str(other)) == source_digest(str(shown))
    with pytest.raises(InputError, match=r"96 of 96 images in .* were measured on"):
        read_images(
            subject.tokenizer, str(other), sequences=100, length=17, split="held-out", model=subject.model,
            seen=pieces_of(measured),
        )  # fmt: skip
    pictures(other, 26, seed=1)
    new = read_images(
        subject.tokenizer, str(other), sequences=100, length=17, split="held-out", model=subject.model,
        seen=pieces_of(measured),
    )  # fmt: skip
    assert len(new) == 26
    (other / "000.png").write_bytes((shown / "000.png").read_bytes())
    assert source_digest(str(other)) != source_digest(str(shown))


def test_samples_have_the_positions_that_the_blocks_have(families: dict[str, Path]) -> None:
    found = {name: api_subject(folder) for name, folder in families.items()}
    assert {name: subject.probe.length for name, subject in found.items()} == {
        "vit": 17, "clip": 17, "mobilenet": 4, "regnet": 196,  # its configuration names no size
    }  # fmt: skip
    assert {name: len(subject.segmented.blocks) for name, subject in found.items()} == {
        "vit": 3, "clip": 3, "mobilenet": 0, "regnet": 0,
    }  # fmt: skip


def api_subject(folder: Path) -> Any:
    from natprec.measurement.subject import Subject

    return Subject.of(load_model(str(folder)))


def test_the_estimate_is_what_replaying_the_model_says(families: dict[str, Path], shown: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    for family in ("vit", "regnet"):
        model = AutoModelForImageClassification.from_pretrained(families[family])
        processor = AutoImageProcessor.from_pretrained(families[family])
        options: dict[str, Any] = {"engine": "natprec", "group_size": 32, "rounding": "rtn", "seed": 1}
        swept = api.measure(model, processor, shown, **options)
        exact = api.measure(model, processor, shown, estimator="exact", **options)
        ratios = torch.cat([
            torch.from_numpy(curve.kl() / exact.curves[name].kl()) for name, curve in swept.curves.items()
            if curve.formats and exact.curves[name].kl().all()
        ])  # fmt: skip
        assert len(ratios) > 50
        assert float(ratios.log2().median().abs()) < 0.6


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "I;16", "one pixel", "3 rows"])
def test_pictures_of_any_kind_are_read(families: dict[str, Path], tmp_path: Path, mode: str) -> None:
    folder = pictures(tmp_path / "images", 3)
    first = folder / ("000.jpg" if mode == "CMYK" else "000.png")
    opened = Image.open(folder / "000.png")
    if mode == "one pixel":
        changed = opened.resize((1, 1))
    elif mode == "3 rows":
        changed = opened.resize((40, 3))
    else:
        changed = opened.convert("L").convert("I;16") if mode == "I;16" else opened.convert(mode)
    changed.save(first)
    loaded = load_model(str(families["vit"]))
    samples = read_images(
        loaded.tokenizer, str(folder), sequences=100, length=17, split="calibration", model=loaded.model
    )
    assert samples.tensors["pixel_values"].shape[1:] == (3, SIDE, SIDE)
    assert torch.isfinite(samples.tensors["pixel_values"]).all()
    assert len(samples) >= 3


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("vit", "empty", "holds no picture"),
        ("vit", "broken", "'broken/b.png' cannot be read"),
        ("vit", "nowhere", "does not exist"),
        ("vit", "text.txt", "is no folder"),
        ("vit", None, "no images"),
        ("without", "good", "has no processor of images"),
        ("pickled", "good", "mobilenet_v2.pth is a pickle, which can run code and is not read: load it into the code"),
        ("pipeline", "good", "is a pipeline of diffusers (DiTPipeline: scheduler, transformer, vae)"),
        ("component", "good", "is a part of a diffusers pipeline (DiTTransformer2DModel)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, data: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(families["vit"], "vit")
    shutil.copytree(families["vit"], "without", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    for name in ("pickled", "pipeline", "component", "broken", "empty"):
        Path(name).mkdir()
    Path("pickled/mobilenet_v2.pth").write_bytes(b"\x80\x02")
    index = {"_class_name": "DiTPipeline", "scheduler": ["a", "b"], "transformer": ["a", "b"], "vae": ["a", "b"]}
    Path("pipeline/model_index.json").write_text(json.dumps(index))
    Path("component/config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel"}))
    Path("component/diffusion_pytorch_model.safetensors").write_bytes(b"")
    pictures(Path("good"), 4)
    pictures(Path("broken"), 2)
    Path("broken/b.png").write_bytes(Path("good/003.png").read_bytes()[:60])
    Path("text.txt").write_text("some text\n" * 100)
    before = left_behind(tmp_path)
    given = () if data is None else ("--data", data)
    for command in (("quantize", "--eps", "0.05", "--out", "out"), ("measure", "--out", "out")):
        told = natprec(*command, "--model", model, *given)
        assert told.code == 2, told
        assert words in told.reason
        assert told.out == ""
    assert left_behind(tmp_path) == before


def test_a_processor_of_another_size_is_refused(families: dict[str, Path], shown: Path, tmp_path: Path) -> None:
    shutil.copytree(families["vit"], tmp_path / "vit")
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(file.read_text().replace(f'"height": {SIDE}', '"height": 48'))
    with pytest.raises(ModelError, match=r"cannot be given the \(1, 3, 48, 32\) that its processor makes of '000.png'"):
        quantize(config(tmp_path / "vit", shown), tmp_path / "out")


def test_a_body_of_convolutions_needs_natprec_s_own_loader(families: dict[str, Path], tmp_path: Path) -> None:
    from transformers import RegNetModel

    RegNetModel.from_pretrained(families["regnet"]).save_pretrained(tmp_path / "body")
    shutil.copy(families["regnet"] / "preprocessor_config.json", tmp_path / "body")
    subject = api_subject(tmp_path / "body")
    with pytest.raises(ModelError, match=r"no weights but those of convolutions.*use --engine natprec"):
        request.for_engine(subject, "vllm")
    assert request.for_engine(subject, "natprec").sites


def test_inspect_is_for_models_of_text_and_says_so(
    families: dict[str, Path], shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = natprec("inspect", "--model", families["vit"], "--data", shown, "--group-size", "32")
    assert told.code == 2
    assert "is an image classifier, and natprec inspect is for models of text" in told.err


def test_compare_at_the_bytes_of_gguf(families: dict[str, Path], shown: Path, tmp_path: Path) -> None:
    told = natprec(
        "compare", "--model", families["vit"], "--data", shown, "--group-size", "32", "--methods", "gguf,natprec",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert told.code == 0, told.err
    theirs, ours = json.loads(told.out)["rows"]
    assert theirs["status"] == ours["status"] == "ok"
    assert ours["stored_bytes"] <= theirs["stored_bytes"]
    assert 0 < ours["kl_mean"] < theirs["kl_mean"]
    assert ours["image_error"] is None


def test_a_notebook_measures_saves_and_judges(families: dict[str, Path], shown: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(families["clip"])
    processor = AutoImageProcessor.from_pretrained(families["clip"])
    measurement = api.measure(model, processor, shown, distortion="image-features", group_size=32)
    plan = api.solve(measurement, eps=EPS)
    api.save(api.apply(plan, model, processor, shown), tmp_path / "out")
    found = api.verify(tmp_path / "out", model, shown)
    assert found.passed
    assert found.distortion == "image-features"
