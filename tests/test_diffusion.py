"""Parts of diffusion pipelines: from a folder to a pipeline whose part is quantized, judged and reloaded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import natprec as api
from natprec.checkpoints.pipeline_reader import load_part
from natprec.config import QuantizeConfig
from natprec.data.pipeline_calls import noted, run_pipeline
from natprec.data.prompts import asked_of
from natprec.errors import InputError, ModelError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.models.pipelines import PipelineFolder
from natprec.pipeline import request
from natprec.pipeline.components import settled
from natprec.pipeline.quantize import quantize
from natprec.pipeline.samples import calibration_samples
from natprec.solver import Plan
from natprec.tasks.diffusion import PipelinePart
from natprec.utils.progress import Stages
from tests.pipelines import CLASSES, MAKERS
from tests.run_command import left_behind, natprec

EPS, STEPS = 0.01, 4
RUNS = {
    "transformer": ("dit", "transformer", "vllm"),  # nobody asked for an engine
    "vae": ("dit", "vae", "diffusers"),
    "unet": ("unet", "unet", "natprec"),
    "flux": ("flux", "transformer", "diffusers"),
    "words": ("stable-diffusion", "text_encoder", "natprec"),
}
ASKED = {
    "dit": {"class_labels": [1, 2], "guidance_scale": 1.0},
    "unet": {"batch_size": 2},
    "flux": {"prompt": ["a cat", "a dog"], "height": 16, "width": 16},
    "stable-diffusion": {"prompt": ["a cat", "a dog"]},
}
Made = tuple[Path, Path, Measurement, Plan, Verification]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {family: make(folder / family) for family, make in MAKERS.items()}


def config(model: Path, component: str, **options: Any) -> QuantizeConfig:
    """Half of the tolerance is held back: a few dozen steps scatter by as much."""
    given: dict[str, Any] = {"group_size": 16, "steps": STEPS, "tokens": 256, "eval_tokens": 512, "margin": 0.5}
    if model.name == "flux":
        given["image_size"] = 16
    return QuantizeConfig(str(model), component=component, eps=EPS, arithmetic="float32", **{**given, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, families: dict[str, Path]) -> dict[str, Made]:
    """Checkpoints."""
    found = {}
    for name, (family, component, engine) in RUNS.items():
        out = tmp_path_factory.mktemp("made") / name
        found[name] = (families[family], out, *quantize(config(families[family], component, engine=engine), out))
    return found


def opened(folder: Path, component: str, **options: Any) -> Subject:
    return request.open_subject(settled(config(folder, component, **options)), Stages(quiet=True))


def part_of(subject: Subject) -> PipelinePart:
    assert isinstance(subject.task, PipelinePart)
    return subject.task


@pytest.mark.parametrize("run", RUNS)
def test_the_promise_is_kept_on_steps_that_were_not_measured_on(made: dict[str, Made], run: str) -> None:
    *_, measurement, plan, verification = made[run]
    assert verification.passed
    assert verification.kl_mean <= EPS
    assert verification.distortion == "component"
    assert [text.name for text in verification.texts] == ["the pipeline itself"]
    assert verification.corrections == 0
    assert verification.counted(verification.tokens)[1] == "steps"
    assert verification.perplexity_reference is None
    assert plan.bits_per_weight < 8
    assert measurement.header.engine == RUNS[run][2].replace("vllm", "diffusers")


@pytest.mark.parametrize("run", RUNS)
def test_the_folder_is_the_pipeline_with_one_part_changed(made: dict[str, Made], run: str) -> None:
    source, out, *_ = made[run]
    component = RUNS[run][1]
    here, there = ({str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
                   for folder in (source, out))  # fmt: skip
    for name, file in here.items():
        if not name.startswith(component):
            assert there[name].read_bytes() == file.read_bytes(), name
    config = json.loads((out / component / "config.json").read_text())
    said = config.pop("quantization_config")
    assert said["quant_method"] == ("compressed-tensors" if RUNS[run][2] == "natprec" else "sdnq")
    assert config == json.loads((source / component / "config.json").read_text())
    weights = f"{component}/{'model' if run == 'words' else 'diffusion_pytorch_model'}.safetensors"
    assert there[weights].stat().st_size < 0.6 * here[weights].stat().st_size


@pytest.mark.parametrize("run", RUNS)
def test_codes_run_as_what_they_stand_for(made: dict[str, Made], run: str) -> None:
    """natprec.load runs on codes; the judge's network has weights that the compressed-tensors library unpacked."""
    source, out, *_ = made[run]
    runnable = api.load(out)
    assert isinstance(runnable, api.RunnablePipeline)
    assert runnable.component == RUNS[run][1]
    part = part_of(opened(source, RUNS[run][1]))
    assert part.calls is not None
    with torch.no_grad():
        both = [part.returned(network, part.calls.shown) for network in (runnable.model, load_part(out, RUNS[run][1]))]
    for on_codes, dense in zip(*both, strict=True):  # products of bfloat16, where the machine has them
        assert float((on_codes - dense).abs().max()) <= 0.03 * float(dense.abs().max())
    asked = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), **ASKED[RUNS[run][0]]}
    assert len(runnable(**asked).images) == 2


@pytest.mark.parametrize("run", RUNS)
def test_the_judge_reads_what_was_rounded(made: dict[str, Made], run: str) -> None:
    """Every tensor that is no site is the original's, to 16 bits where it is a matrix; sites are on their grids."""
    source, out, _, plan, _ = made[run]
    component = RUNS[run][1]
    quantized, original = load_part(out, component).state_dict(), load_part(source, component).state_dict()
    coded = {f"{name}.weight" for name in plan.quantized}
    assert coded <= quantized.keys()
    for name, tensor in original.items():
        error = float((quantized[name] - tensor).norm() / tensor.norm().clamp_min(1e-6))
        if name in coded:
            assert 0 < error < 0.9, name
        elif "layer_norm" not in name:  # whose factors are rescaled against the columns of the Linears that follow
            assert error < 0.01, name


@pytest.mark.parametrize("run", RUNS)
def test_images_are_made_from_equal_seeds(made: dict[str, Made], run: str) -> None:
    _, out, *_ = made[run]
    found = json.loads((out / "trajectory.json").read_text())
    assert found["component"] == RUNS[run][1]
    assert found["steps"] == STEPS
    assert len(found["psnr_db"]) == 4
    assert all(10 < each < 80 for each in found["psnr_db"])
    with Image.open(out / "trajectory.png") as strip:
        side = strip.size[1] // 2
        assert strip.size == (4 * side, 2 * side)
    if run in ("vae", "words"):
        assert found["timesteps"] == []
        return
    means = [each["mean"] for each in found["timesteps"]]
    assert len(means) == STEPS
    assert found["worst"][0] == found["timesteps"][means.index(max(means))]["first"]
    drifts = [each["drift"] for each in found["timesteps"]]
    assert drifts[0] == 0  # equal noise
    assert drifts[-1] > 0
    assert all(0 < mean < 5 * EPS for mean in means)


def test_commands_one_by_one(made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, *_ = made["unet"]
    monkeypatch.chdir(tmp_path)
    same = ("--model", source, "--component", "unet", "--steps", STEPS, "--tokens", 256)
    for command in (
        ("measure", *same, "--engine", "natprec", "--group-size", "16", "--arithmetic", "float32", "--out", "measured"),
        ("solve", "measured", "--eps", EPS, "--margin", 0.5, "--out", "plan.json"),
        ("apply", "plan.json", *same, "--arithmetic", "float32", "--out", "applied"),
        ("verify", "applied", "--model", source, "--component", "unet", "--steps", STEPS, "--eval-tokens", 512),
    ):
        told = natprec(*command)
        assert told.code == 0, told.err
    assert "worst timestep" in told.err
    assert (tmp_path / "applied" / "trajectory.png").is_file()
    own, whole = load_part(tmp_path / "applied", "unet").state_dict(), load_part(out, "unet").state_dict()
    assert own.keys() == whole.keys()
    sites = Plan.load(tmp_path / "plan.json").quantized
    assert all(torch.equal(own[f"{name}.weight"], whole[f"{name}.weight"]) for name in sites)


def test_a_run_goes_on_from_what_was_measured(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from natprec.pipeline import quantize as module

    own, out = config(families["dit"], "transformer", tokens=512), tmp_path / "out"

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "round_and_verify", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(own, out)
    assert not out.exists()
    kept = tmp_path / "out.partial" / "measurement.safetensors"
    before = kept.read_bytes()
    measurement, _, verification = quantize(own, out, resume=True)
    assert verification.passed
    assert (
        measurement.header.data_digest
        == Measurement.load(out / "natprec" / "measurement.safetensors").header.data_digest
    )
    assert (out / "natprec" / "measurement.safetensors").read_bytes() == before
    assert not kept.exists()


def test_samples_are_spread_over_timesteps_and_classes(families: dict[str, Path]) -> None:
    subject = opened(families["dit"], "transformer")
    samples = calibration_samples(config(families["dit"], "transformer", tokens=16 * 64), subject, Stages(quiet=True))
    assert len(samples) == 64
    assert samples.length == subject.probe.length == 16  # patches
    times, classes = samples.tensors["timestep"], samples.tensors["class_labels"]
    own = part_of(subject).pipeline.scheduler
    own.set_timesteps(STEPS)
    assert sorted(times.unique().tolist()) == sorted(own.timesteps.tolist())
    assert all(int((times == each).sum()) == 64 // STEPS for each in times.unique())
    assert classes.unique().tolist() == list(range(CLASSES))
    again = calibration_samples(config(families["dit"], "transformer", tokens=16 * 64), subject, Stages(quiet=True))
    assert again.digest == samples.digest
    other = calibration_samples(
        config(families["dit"], "transformer", tokens=16 * 64, seed=1), subject, Stages(quiet=True)
    )
    assert other.digest != samples.digest


def test_noted_calls_give_what_the_pipeline_got(families: dict[str, Path]) -> None:
    """Replaying the rows of each call gives the network's output in the pipeline, of which half is a variance."""
    subject = opened(families["dit"], "transformer")
    part = part_of(subject)
    outputs: list[torch.Tensor] = []
    handle = subject.model.register_forward_hook(lambda module, args, output: outputs.append(output.sample))
    with noted(part, "forward") as calls:
        run_pipeline(part, [1, 4], [5, 6], STEPS, decode=False)
    handle.remove()
    assert len(calls) == len(outputs) == STEPS
    assert part.calls is not None
    assert part.calls.channels == 4
    for call, output in zip(calls, outputs, strict=True):
        from natprec.tasks import Samples

        found = subject.distortion.output(subject.model, Samples(call.rows, 16))
        assert torch.equal(found[:, 0], output[:, :4].flatten(1))


def test_the_distortion_is_relative_and_its_draws_have_its_curvature(families: dict[str, Path]) -> None:
    subject = opened(families["unet"], "unet")
    output = torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(0))
    change = 1e-3 * torch.randn(3, 1, 50, generator=torch.Generator().manual_seed(1))
    exact = subject.distortion.between(output, output + change, subject.probe)
    assert exact.shape == (3, 1)
    assert torch.allclose(exact, change.double().square().sum(-1) / output.double().square().sum(-1))
    assert torch.allclose(
        subject.distortion.between(9 * output, 9 * (output + change), subject.probe), exact, rtol=1e-4
    )
    squares = torch.zeros(3)
    for seed in range(400):
        leaf = output.clone().requires_grad_()
        subject.distortion.draw(leaf, range(3), seed).backward()
        assert leaf.grad is not None
        squares += (leaf.grad * change).sum((1, 2)).square() / 2 / 400
    assert torch.allclose(squares, exact[:, 0].float(), rtol=0.35)


def test_blocks_run_one_by_one_where_nothing_else_reaches_them(families: dict[str, Path]) -> None:
    """DiT's embed class and timestep themselves; what Flux's are given comes from layers before them."""
    assert opened(families["dit"], "transformer").segmented.block_names == [
        "transformer_blocks.0", "transformer_blocks.1",
    ]  # fmt: skip
    assert opened(families["flux"], "transformer").segmented.block_names == []


def test_modulations_are_rounded_to_nearest(families: dict[str, Path]) -> None:
    """They are given as many rows as there are samples, to which GPTQ would fit all errors away."""
    sites = {site.name: site for site in opened(families["dit"], "transformer").sites}
    assert not sites["transformer_blocks.0.norm1.linear"].gptq
    assert sites["transformer_blocks.0.attn1.to_q"].gptq


@pytest.fixture
def broken(families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders that cannot be used, in the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("dit", "unet"):
        shutil.copytree(families[name], name)
    shutil.copytree("dit", "unscheduled")
    shutil.rmtree("unscheduled/scheduler")
    shutil.copytree("dit", "unweighted")
    Path("unweighted/transformer/diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree("dit/transformer", "alone")
    Path("empty.txt").write_text("\n  \n")
    Path("binary.txt").write_bytes(b"\x00\x01\xff\xfe")
    Path("classes.txt").write_text(f"0\n{CLASSES}\n")
    Path("words.txt").write_text("1\na cat\n")
    return tmp_path


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("dit", (), "is a pipeline of diffusers (DiTPipeline: scheduler, transformer, vae); say with --component"),
        ("dit", ("--component", "transfomer"), "did you mean 'transformer'? known: transformer, vae"),
        ("dit", ("--component", "scheduler"), "is a DDIMScheduler, which has no weights; known: transformer, vae"),
        ("dit/transformer", (), "give the whole pipeline: --model "),
        ("alone", (), "is a part of a diffusers pipeline (DiTTransformer2DModel); give the folder of the whole"),
        ("unscheduled", ("--component", "transformer"), "lacks the folder of its scheduler (DDIMScheduler)"),
        ("unweighted", ("--component", "transformer"), "has no diffusion_pytorch_model.safetensors"),
        ("dit", ("--component", "transformer", "--steps", "0"), "steps 0: give a positive number"),
        ("dit", ("--component", "transformer", "--prompts", "nowhere.txt"), "'nowhere.txt' does not exist"),
        ("dit", ("--component", "transformer", "--prompts", "empty.txt"), "no line with a prompt"),
        ("dit", ("--component", "transformer", "--prompts", "binary.txt"), "no UTF-8 text"),
        ("dit", ("--component", "transformer", "--prompts", "classes.txt"), "line 2: '6' is no class; the pipeline"),
        ("dit", ("--component", "transformer", "--prompts", "words.txt"), "line 2: 'a cat' is no class"),
        ("unet", ("--component", "unet", "--prompts", "words.txt"), "makes images of noise alone"),
        ("dit", ("--component", "transformer", "--data", "words.txt"), "prompts are given with --prompts"),
        ("dit", ("--component", "transformer", "--engine", "sglang"), "runs no parts of a pipeline"),
        ("dit", ("--component", "transformer", "--kv", "8"), "kv '8' is not for parts of a pipeline"),
        ("words.txt", ("--component", "transformer"), "is a file but not a .gguf"),
        ("empty-folder", ("--component", "transformer"), "is no pipeline of diffusers (it has no model_index.json)"),
        ("empty-folder", ("--prompts", "words.txt"), "is no pipeline of diffusers; leave out --prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(
    broken: Path, model: str, options: tuple[str, ...], words: str
) -> None:
    Path("empty-folder").mkdir()
    before = left_behind(broken)
    told = natprec("quantize", "--eps", "0.05", "--out", "out", "--model", model, *options)
    assert told.code == 2, told
    assert words in told.reason
    assert told.out == ""
    assert left_behind(broken) == before


def test_without_diffusers_the_message_says_what_to_install(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "diffusers" else found(name, *args)
    )
    told = natprec("quantize", "--eps", "0.05", "--out", "out", "--model", "dit", "--component", "transformer")
    assert told.code == 2
    assert told.reason.endswith("diffusers is not installed; run: pip install 'natprec[diffusion]'")


def test_latents_that_are_no_numbers_are_refused(broken: Path) -> None:
    from diffusers import DiTTransformer2DModel

    transformer = DiTTransformer2DModel.from_pretrained("dit/transformer")
    with torch.no_grad():
        transformer.proj_out_2.bias.fill_(3e38)
    transformer.save_pretrained("dit/transformer")
    with pytest.raises(ModelError, match=r"gives its vae NaN or Inf as 'z'.*scheduler does not suit it"):
        opened(Path("dit"), "vae")


def test_asked_with_what_a_file_says(broken: Path) -> None:
    pipeline = PipelineFolder.found(Path("dit"))
    assert pipeline is not None
    Path("some.txt").write_text("4\n\n2\n")
    assert asked_of(pipeline, "some.txt").items == (4, 2)
    assert asked_of(pipeline, None).items == tuple(range(CLASSES))
    with pytest.raises(InputError, match=r"some\.txt.*makes images of noise alone"):
        asked_of(PipelineFolder.found(Path("unet")) or pipeline, "some.txt")


def test_figures_of_images_add_up() -> None:
    from natprec.evaluation.trajectories import _psnr

    one = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert _psnr(one, one) is None
    assert _psnr(one, one + 0.1) == pytest.approx(20, abs=1e-3)
    assert math.isclose(_psnr(one, one + 0.01) or 0, 40, abs_tol=1e-3)
