"""Speech models, from a folder and a folder of recordings to a checkpoint that is judged and reloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import natprec as api
from natprec.checkpoints.dense_reader import load_quantized
from natprec.config import QuantizeConfig
from natprec.data.speech import read_speech
from natprec.errors import InputError, ModelError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.measurement.subject import Subject
from natprec.models.loading import load_model
from natprec.pipeline.quantize import quantize
from natprec.solver import Plan
from natprec.tasks import SPEECH
from tests.run_command import left_behind, natprec
from tests.speech_models import MAKERS, recordings, saved, write_wave
from tests.speech_models import sound as sounds
from tests.vision_language import pictures

EPS = 0.05
RUNS = {"whisper": "vllm", "moonshine": "natprec", "speech2text": "transformers"}
Made = tuple[Path, Path, Measurement, Plan, Verification]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """A folder of each."""
    folder = tmp_path_factory.mktemp("models")
    return {family: saved(family, folder / family, tiny_tokenizer) for family in MAKERS}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings."""
    return recordings(tmp_path_factory.mktemp("recordings") / "sounds", 48)


def config(model: Path, heard: Path, **options: Any) -> QuantizeConfig:
    """Half of the tolerance is held back: half a dozen recordings scatter by as much."""
    held = {"margin": 0.5, "eps": EPS, **options}
    return QuantizeConfig(str(model), data=str(heard), group_size=32, arithmetic="float32", **held)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, families: dict[str, Path], heard: Path) -> dict[str, Made]:
    """Checkpoints."""
    found = {}
    for family, engine in RUNS.items():
        out = tmp_path_factory.mktemp("made") / family
        found[family] = (families[family], out, *quantize(config(families[family], heard, engine=engine), out))
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict


def logits(model: Any) -> torch.Tensor:
    """Of noise, with random tokens."""
    with torch.no_grad():
        found: torch.Tensor = SPEECH.forward(model, SPEECH.made_up(model, 4, 24, seed=3)).logits
    return found


@pytest.mark.parametrize("family", RUNS)
def test_the_promise_is_kept_on_recordings_that_were_not_measured_on(made: dict[str, Made], family: str) -> None:
    *_, measurement, plan, verification = made[family]
    assert verification.passed
    assert [text.name for text in verification.texts] == ["sounds"]
    assert verification.kl_mean <= EPS
    assert plan.bits_per_weight < 8
    assert verification.counted(verification.tokens) == (6, "recordings")  # half of those that are held out judge first
    assert verification.choice == "token"
    assert measurement.header.sequences == 36
    assert verification.distortion == "speech-kl"
    assert verification.perplexity_reference is not None
    assert verification.perplexity_reference < 512
    assert verification.top1_agreement is not None
    assert verification.top1_agreement > 0.8


@pytest.mark.parametrize("family", ["whisper", "speech2text"])
def test_plain_transformers_reloads_what_was_judged(made: dict[str, Made], family: str) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer, GenerationConfig

    folder, out, *_ = made[family]
    plain = AutoModelForSpeechSeq2Seq.from_pretrained(out, dtype=torch.float32).eval()
    expected = logits(load_quantized(out, tried=False))  # unpacked by natprec
    assert (logits(plain) - expected).abs().max() <= 1e-5 * expected.abs().max()
    original = AutoFeatureExtractor.from_pretrained(folder)
    assert AutoFeatureExtractor.from_pretrained(out).to_dict() == original.to_dict()
    assert AutoTokenizer.from_pretrained(out)("abc def") == AutoTokenizer.from_pretrained(folder)("abc def")
    codes = GenerationConfig.from_pretrained(out)
    assert getattr(codes, "lang_to_id", None) == getattr(
        load_model(str(folder)).model.generation_config, "lang_to_id", None
    )
    assert hasattr(codes, "lang_to_id") == (family == "whisper")


def test_both_halves_are_quantized_and_convolutions_stay_at_16_bits(made: dict[str, Made]) -> None:
    for family in ("whisper", "speech2text"):
        _, out, measurement, plan, verification = made[family]
        for half in ("encoder", "decoder"):
            assert [name for name in plan.quantized if f".{half}." in name]
        assert [name for name in plan.quantized if "encoder_attn.k_proj" in name]
        kept = {name: curve.site for name, curve in measurement.weights.items() if curve.site.role == "convolution"}
        assert len(kept) == 2
        ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
        tensors = stored(out)
        for name in kept:
            assert plan.sites[name].format is None
            assert name in ignored
            assert tensors[f"{name}.weight"].dtype == torch.bfloat16
        assert abs(plan.stored_bytes - verification.stored_bytes) < 0.05 * plan.stored_bytes_reference + 20_000


def test_keys_and_values_that_hear_share_their_input(made: dict[str, Made]) -> None:
    curves = made["whisper"][2].weights
    own = "model.decoder.layers.0.encoder_attn"
    assert curves[f"{own}.k_proj"].site.fused_group == curves[f"{own}.v_proj"].site.fused_group
    assert curves[f"{own}.q_proj"].site.fused_group != curves[f"{own}.k_proj"].site.fused_group


def test_natprec_s_own_checkpoint_holds_convolutions_as_codes(made: dict[str, Made]) -> None:
    _, out, measurement, plan, _ = made["moonshine"]
    convolutions = [name for name, curve in measurement.weights.items() if curve.site.role == "convolution"]
    coded = [name for name in convolutions if plan.sites[name].format is not None]
    assert coded
    tensors = stored(out)
    for name in coded:
        assert f"{name}.weight_packed" in tensors
        assert f"{name}.weight" not in tensors
    expected = logits(load_quantized(out, "natprec"))
    loaded = api.load(out)
    # where the CPU multiplies bfloat16 the Linears' kernels do, too
    assert (logits(loaded.model) - expected).abs().max() <= 2e-2 * expected.abs().max()
    assert loaded.tokenizer.feature_extractor.sampling_rate == 16_000
    written = loaded.model.generate(**SPEECH.inputs(SPEECH.made_up(loaded.model, 1, 1)), max_new_tokens=4)
    assert written.shape[1] > 1


def test_measure_solve_apply_and_verify_are_the_same_in_four_commands(
    made: dict[str, Made], heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, *_ = made["whisper"]
    monkeypatch.chdir(tmp_path)
    same = ("--group-size", "32", "--arithmetic", "float32")
    for command in (
        ("measure", "--model", folder, "--data", heard, *same, "--out", "measured"),
        ("solve", "measured", "--eps", EPS, "--out", "plan.json"),
        ("apply", out / "plan.json", "--model", folder, "--data", heard, *same[2:], "--out", "applied"),
        ("verify", "applied", "--model", folder, "--eval-data", heard),
    ):
        told = natprec(*command)
        assert told.code == 0, told.err
    measured = Measurement.load(out / "natprec" / "measurement.safetensors")
    for name, curve in Measurement.load(tmp_path / "measured").weights.items():
        assert (curve.forward == measured.weights[name].forward).all(), name
    again, whole = stored(tmp_path / "applied"), stored(out)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_the_estimate_is_what_replaying_the_model_says(families: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_model(str(families["whisper"]))
    few = recordings(tmp_path / "few", 8)
    options: dict[str, Any] = {"engine": "natprec", "group_size": 32, "rounding": "rtn", "seed": 1}
    swept = api.measure(loaded.model, loaded.tokenizer, few, **options)
    exact = api.measure(loaded.model, loaded.tokenizer, few, estimator="exact", **options)
    ratios = {
        name: torch.from_numpy(curve.kl() / exact.curves[name].kl()).log2()
        for name, curve in swept.curves.items() if curve.formats and exact.curves[name].kl().all()
    }  # fmt: skip
    assert len(ratios) > 30
    for half in ("encoder.", "decoder."):
        own = torch.cat([each for name, each in ratios.items() if half in name])
        assert float(own.median().abs()) < 0.6, half


@pytest.mark.parametrize("family", ["whisper", "moonshine"])
def test_what_is_measured_is_what_was_predicted(families: dict[str, Path], tmp_path: Path, family: str) -> None:
    loaded = load_model(str(families[family]))
    model, processor = loaded.model, loaded.tokenizer
    shown, other = recordings(tmp_path / "shown", 96), recordings(tmp_path / "other", 96, first=500)
    judging = read_speech(processor, str(other), sequences=96, length=64, split="held-out", model=model)
    measurement = api.measure(model, processor, shown, group_size=32, distortion="speech-kl")
    for eps in (0.1, 0.03, 0.01):
        out = tmp_path / str(eps)
        plan = api.solve(measurement, eps=eps)
        api.save(api.apply(plan, model, processor, shown), out)
        found = api.verify(out, model, judging)
        assert found.counted(found.tokens) == (96, "recordings")
        assert found.kl_predicted is not None
        assert 0.75 <= found.kl_mean / found.kl_predicted <= 1.33, (eps, found.kl_mean, found.kl_predicted)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("whisper", None, "no recordings, and 'whisper' is a speech model; name a folder of recordings with --data"),
        ("whisper", "empty", "recordings 'empty' holds no recording (.wav, .wave)"),
        ("whisper", "nowhere", "recordings 'nowhere' does not exist"),
        ("whisper", "text.txt", "recordings 'text.txt' is no folder"),
        ("whisper", "photos", "recordings 'photos' holds no recording"),
        ("whisper", "one", "recordings 'one' holds one recording ('000.wav'); give two or more"),
        ("whisper", "broken", "recording 'broken/b.wav' is cut off"),
        ("whisper", "silent", "recording 'silent/b.wav' holds no samples"),
        ("whisper", "packed", "recordings 'packed' holds 1 .flac, 2 .mp3, and natprec reads .wav alone; convert them"),
        ("whisper", "latin", "transcript 'latin/000.txt' cannot be read"),
        ("without", "good", "model 'without' has no feature extractor (preprocessor_config.json or"),
        ("t5", "good", "is an encoder-decoder; natprec needs one that predicts the next token"),
        ("llama", "good", "data 'good' is a folder of recordings, and model 'llama' (llama) reads text"),
        ("llama", "photos", "data 'photos' is a folder of pictures, and model 'llama' (llama) reads text"),
        ("vit", "good", "images 'good' holds no picture"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, data: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(families["whisper"], "whisper")
    shutil.copytree(families["whisper"], "without", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    for name, described in {
        "t5": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "vit": {"model_type": "vit", "architectures": ["ViTModel"]},
    }.items():
        shutil.copytree(families["whisper"], name)
        Path(name, "config.json").write_text(json.dumps(described))
    Path("empty").mkdir()
    pictures(Path("photos"), 2)
    Path("text.txt").write_text("some text\n" * 100)
    for name, count in {"good": 4, "one": 1, "broken": 2, "silent": 2, "packed": 2, "latin": 2}.items():
        recordings(Path(name), count, seconds=0.1)
    Path("broken/b.wav").write_bytes(Path("good/003.wav").read_bytes()[:-60])
    write_wave(Path("silent/b.wav"), sounds(0, 1.0)[:0])
    for name in ("a.mp3", "b.mp3", "a.flac"):
        Path("packed", name).write_bytes(b"ID3")
    Path("latin/000.txt").write_bytes(b"caf\xe9")
    before = left_behind(tmp_path)
    given = () if data is None else ("--data", data)
    for command in (("quantize", "--eps", "0.05", "--out", "out"), ("measure", "--out", "out")):
        told = natprec(*command, "--model", model, *given)
        assert told.code == 2, told
        assert words in told.reason
        assert told.out == ""
    assert left_behind(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--learn-tokens", "4096"), "on which natprec does not learn (--learn-tokens, --time)"),
        (("--rounding", "learned"), "on which natprec does not learn (--rounding learned)"),
        (("--weights", "disk"), "which natprec measures whole, and its weights would stay on disk"),
        (("--engine", "llama.cpp"), "model type 'whisper' cannot be written as GGUF yet"),
        (("--transforms", "rotate"), "natprec knows the residual stream of language models alone"),
        (("--distortion", "kl"), "distortion 'kl' needs another kind of model"),
        (("--images", "photos"), "is a speech model, which sees none"),
        (("--eval-data", "text.txt"), "recordings 'text.txt' is no folder"),
    ],
)
def test_options_that_do_not_suit_speech_are_refused(
    families: dict[str, Path],
    heard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some text\n" * 100)
    told = natprec(
        "quantize", "--model", families["whisper"], "--data", heard, "--eps", "0.05", "--out", "out", *options
    )
    assert told.code == 2
    assert words in told.err
    assert not Path("out").exists()


def test_an_extractor_of_another_model_is_refused(families: dict[str, Path], heard: Path, tmp_path: Path) -> None:
    shutil.copytree(families["whisper"], tmp_path / "whisper")
    file = tmp_path / "whisper" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"feature_size": 16', '"feature_size": 24'))
    with pytest.raises(ModelError, match=r"cannot be given the \(1, 24, 100\) that its feature extractor makes of"):
        quantize(config(tmp_path / "whisper", heard), tmp_path / "out")


def test_a_tokenizer_alone_is_not_enough(families: dict[str, Path], heard: Path) -> None:
    loaded = load_model(str(families["whisper"]))
    with pytest.raises(InputError, match="makes no recordings ready; give the model's processor"):
        api.measure(loaded.model, loaded.tokenizer.tokenizer, heard)


def test_recordings_that_were_measured_on_do_not_judge(made: dict[str, Made], heard: Path, tmp_path: Path) -> None:
    folder, out, *_ = made["whisper"]
    other = tmp_path / "other"
    other.mkdir()
    for number, file in enumerate(sorted(heard.glob("*.wav"))[:2]):
        shutil.copy(file, other / f"{number}.wav")  # without their texts
    told = natprec("verify", out, "--model", folder, "--eval-data", other)
    assert told.code == 2
    assert "2 of 2 recordings in" in told.reason


@pytest.mark.parametrize("command", ["inspect", "generate", "serve", "energy"])
def test_commands_for_text_say_so(
    made: dict[str, Made], heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, out, *_ = made["whisper"]
    options: tuple[object, ...] = {
        "generate": (out, "--prompt", "a"),
        "serve": (out,),
        "energy": (out,),
    }.get(command, ("--model", folder, "--data", heard, "--group-size", "32"))
    told = natprec(command, *options)
    assert told.code == 2
    assert "is a speech model" in told.err, told


def test_a_card_says_what_it_is_and_what_judged(made: dict[str, Made]) -> None:
    out = made["whisper"][1]
    told = natprec("card", out)
    assert told.code == 0, told.err
    card = (out / "README.md").read_text()
    assert "pipeline_tag: automatic-speech-recognition" in card
    assert "AutoModelForSpeechSeq2Seq.from_pretrained" in card
    assert "Recordings: 6 recordings of `sounds`, features and token ids with digest" in card
    assert "natprec generate" not in card


def test_a_dry_run_forecasts(families: dict[str, Path], heard: Path) -> None:
    told = natprec("quantize", "--model", families["whisper"], "--data", heard, "--eps", "0.05", "--group-size", "32",
                   "--dry-run", "--json", "--out", "nowhere")  # fmt: skip
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["blocks"] == 0
    assert found["memory_bytes"] > 0


def test_blocks_are_not_taken_apart_and_rows_belong_to_recordings(families: dict[str, Path]) -> None:
    for folder in families.values():
        segmented = Subject.of(load_model(str(folder))).segmented
        assert not segmented.blocks
        assert not segmented.routed
