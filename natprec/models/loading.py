"""Any causal language model or text encoder of transformers, dense and in float32, its defects named first.

A model is a hub id, a local folder, a `.gguf` file or an alias. Weights are read from safetensors or
GGUF, never from pickle, and code that comes with a checkpoint runs only with `trust_remote_code`.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError
from natprec.models.checkpoints import (
    Kind,
    auto_class,
    explained,
    first_line,
    local_path,
    model_kind,
    refuse_without_linear,
    weight_files,
)
from natprec.models.encoders import after_pooling, companions, drop_missing_pooler, embedding_distortion
from natprec.models.experts import take_apart
from natprec.models.gguf_files import check_gguf
from natprec.models.stored import count_elements, hollow_model
from natprec.models.surroundings import quiet, usable_device
from natprec.models.weights import InMemory, Weights, refuse_not_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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
        kind: 'causal' or 'encoder'.
        distortion: name of the distortion that suits it.
        companions: more files of its checkpoint, path → content, that a quantized one needs too.
        head: what makes embeddings of an encoder's pooled vectors; None: they get the length 1.
        weights: where they are: in memory, or on disk until they are needed.
        gguf: the GGUF file that it was read from, if it was.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    storage_dtype: torch.dtype
    source_bytes: int | None
    kind: Kind = "causal"
    distortion: str = "kl"
    companions: dict[str, bytes] = field(default_factory=dict)
    weights: Weights = field(default_factory=InMemory)
    gguf: Path | None = None
    head: nn.Module | None = None


def load_model(
    name: str, *, trust_remote_code: bool = False, device: str = "cpu", on_disk: bool = False
) -> LoadedModel:
    """Load weights in float32 on the CPU, check them, then move them to `device`.

    Args:
        name: an alias, a folder, a `.gguf` file, or else a hub id.
        trust_remote_code: run Python that comes with the checkpoint; never asked interactively.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
        on_disk: leave the weights on disk until they are needed, block by block; they are checked then.
    Raises:
        InputError: the device does not exist, or weights that cannot be left on disk.
        ModelError: not found, incomplete, damaged, already quantized, neither causal nor an
            encoder, no Linear layer, NaN or Inf.
    """
    target = usable_device(device)
    path = local_path(name)
    if on_disk and path is None:
        path = _downloaded(name)
    gguf = path if path is not None and path.is_file() else None
    if gguf:
        check_gguf(gguf)
    files = [gguf] if gguf else weight_files(path) if path else []
    where = str(path.parent if gguf else path) if path else name
    with quiet(stderr=gguf is not None), explained(name, local=path is not None):
        config, dtype = _load_config(name, where, gguf, trust_remote_code)
        kind = model_kind(name, config)
        weights: Weights = InMemory()
        if on_disk:
            if gguf:
                raise InputError(f"model {name!r} is a GGUF file, which is unpacked whole; use --weights memory")
            model, weights, lacking = hollow_model(files, where, config, kind, target, trust_remote_code)
        else:
            model, lacking = _load_weights(where, gguf, config, kind, trust_remote_code)
            take_apart(model)
        tokenizer = _load_tokenizer(where, gguf, config, trust_remote_code)
        distortion, head, others = "kl", None, companions(name, where) if not gguf else {}
        if kind == "encoder":
            distortion, head = embedding_distortion(name, where), after_pooling(name, where)
            head = None if head is None else head.to(target)
    missing = sorted(lacking)
    if missing and not (kind == "encoder" and drop_missing_pooler(model, missing)):
        raise ModelError(
            f"model {name!r} lacks {len(missing)} tensors, the first is {missing[0]!r}; "
            "they would be random numbers: download the checkpoint again or use one saved with its head"
        )
    refuse_without_linear(model)
    model.eval().requires_grad_(False)
    storage_dtype = choose_storage_dtype(dtype, model, weights)
    if weights.whole:
        check_finite(model)
        with explained(name, local=True):
            model.to(target)  # type: ignore[arg-type]  # transformers' wrapper hides nn.Module.to's signature
    source_bytes = sum(file.stat().st_size for file in files) or None
    return LoadedModel(
        name, model, tokenizer, storage_dtype, source_bytes, kind, distortion, others, weights, gguf, head
    )


def stored_elements(name: str) -> int | None:
    """Weights of a model that can be left on disk, counted without loading it; None where that is not known."""
    path = local_path(name)
    if path is not None:
        return sum(count_elements(file) for file in weight_files(path)) if path.is_dir() else None
    from huggingface_hub import model_info

    with contextlib.suppress(Exception):  # no connection or no such model: loading will say which
        found = model_info(name).safetensors
        return None if found is None else found.total
    return None


def choose_storage_dtype(declared: torch.dtype | None, model: nn.Module, weights: Weights) -> torch.dtype:
    """The dtype in which tensors that stay unquantized, and scales, are stored.

    A checkpoint in bfloat16 or float16 keeps its dtype. Otherwise (float32, GGUF, not declared) it is
    the first of bfloat16 and float16 that holds all 1-D parameters (norms, biases) exactly; if neither
    does, bfloat16, whose range is float32's. Matrices do not take part: dequantized ones are exact in
    no 16-bit format.
    """
    if declared in HALF:
        return declared
    vectors = [weights.original(name, p).float() for name, p in model.named_parameters() if p.ndim == 1]
    for dtype in HALF:
        if all(torch.equal(vector.to(dtype).to(vector.dtype), vector) for vector in vectors):
            return dtype
    return torch.bfloat16


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and Inf: see `refuse_not_finite`."""
    for name, parameter in model.named_parameters():
        refuse_not_finite(name, parameter)


def model_digest(model: nn.Module, weights: Weights) -> str:
    """Which weights these are: 16 hex digits, cheap on any size, the same on every device.

    sha256 over name, shape, dtype and at most 4096 values of each parameter, ties counted once. The
    stride is odd: an even one would meet the same few columns in every row of a power-of-two matrix.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat: Tensor = weights.original(name, parameter).reshape(-1)
        stride = -(-flat.numel() // DIGEST_SAMPLE) | 1
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
        sample = flat[::stride].to("cpu", parameter.dtype).contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return config, getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_weights(
    where: str, gguf: Path | None, config: PreTrainedConfig, kind: Kind, trust_remote_code: bool
) -> tuple[PreTrainedModel, set[str]]:
    """The model in float32 and the names of tensors that the checkpoint lacks.

    The config is passed on because a GGUF's metadata takes seconds to parse, each time.
    """
    import transformers

    arguments: dict[str, Any] = {}
    if gguf:  # an absolute path: transformers would prefer a file of that name in the current folder
        arguments["gguf_file"] = str(gguf)
        if hasattr(transformers, "GgufConfig"):  # newer versions leave some architectures packed otherwise
            arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded: Any = auto_class(kind).from_pretrained(
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
    return model, set(report["missing_keys"])


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
            f"no usable tokenizer in {where!r} ({first_line(error)}); "
            "add tokenizer.json and tokenizer_config.json of the model that it was made from"
        ) from error


def _downloaded(name: str) -> Path:
    """The files of a hub model, in the hub's cache."""
    from huggingface_hub import snapshot_download

    with explained(name, local=False):
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]))
