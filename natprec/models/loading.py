"""Any causal language model or text encoder of transformers, dense and in float32, its defects named first.

A model is a hub id (with `@REVISION`: a branch, tag or commit of it), a local folder, a `.gguf` file or an alias.
Weights are read from safetensors or GGUF, never from pickle, and code that comes with a checkpoint runs only with
`trust_remote_code`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError
from natprec.models.already_quantized import KEYS, refuse_unmerged
from natprec.models.devices import quiet, usable_device
from natprec.models.encoders import after_pooling, companions, embedding_distortion
from natprec.models.experts import take_apart
from natprec.models.gguf_files import expert_size, passed_over
from natprec.models.gguf_tensors import is_known, open_gguf
from natprec.models.given import Given, find
from natprec.models.headers import FLOATS
from natprec.models.hub import stored_on_hub
from natprec.models.leftovers import (
    HALF,
    Leftovers,
    exceptions,
    find_leftovers,
    settle_head,
    stored_dtypes,
    whole_vectors,
)
from natprec.models.model_files import (
    explained,
    read_generation_config,
    refuse_without_linear,
    task_of,
)
from natprec.models.places import local_path
from natprec.models.processors import read_processor
from natprec.models.stored import Part, filled_model, hollow_model, placed
from natprec.models.trust import code_files, config_of, model_of
from natprec.models.weights import InMemory, Weights, refuse_not_finite
from natprec.tasks import CAUSAL, ENCODER, SPEECH, Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DIGEST_SAMPLE = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to measure: on its device, in float32, eval, without gradients.

    Attributes:
        name: what the user called it.
        model: every parameter float32 and finite.
        tokenizer: the one that came with it; of a model of images or speech, what makes these ready.
        storage_dtype: dtype of unquantized tensors and of scales in a checkpoint; see `choose_storage_dtype`.
        source_bytes: bytes of its weight files.
        source_format: of files that are quantized, the type of most weights; else empty.
        task: what it is for.
        distortion: name of the distortion that suits it, the task's unless its files say how vectors are pooled.
        companions: more files of its checkpoint, path → content, that a quantized one needs too.
        revision: its commit on the hub; None: it is not from there.
        head: what makes embeddings of an encoder's pooled vectors; None: they get the length 1.
        weights: where they are: in memory, or on disk until they are needed.
        gguf: the GGUF file that it was read from, if it was.
        trusted: whether code that comes with it may run, wherever it is loaded again.
        leftovers: what else is in its checkpoint.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    storage_dtype: torch.dtype
    source_bytes: int | None
    task: Task = CAUSAL
    distortion: str = "kl"
    companions: dict[str, bytes] = field(default_factory=dict)
    weights: Weights = field(default_factory=InMemory)
    gguf: Path | None = None
    trusted: bool = False
    leftovers: Leftovers = field(default_factory=Leftovers)
    head: nn.Module | None = None
    revision: str | None = None
    source_format: str = ""


def load_model(
    name: str, *, trust_remote_code: bool = False, device: str = "cpu", on_disk: bool = False, plain: bool = False
) -> LoadedModel:
    """Load weights in float32 on the CPU, check them, then move them to `device`.

    Args:
        name: an alias, a folder, a `.gguf` file, or else a hub id, `owner/name@revision` for one of its commits.
        trust_remote_code: run Python that comes with the checkpoint; never asked interactively.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
        on_disk: leave the weights on disk until they are needed, block by block; they are checked then.
        plain: let transformers itself read a GGUF file, as a check on what natprec wrote.
    Raises:
        InputError: the device does not exist, or weights that cannot be left on disk.
        ModelError: not found, incomplete, damaged, already quantized, neither causal nor an
            encoder, no Linear layer, NaN or Inf.
    """
    target = usable_device(device)
    given = find(name)
    header, headers = given.gguf, given.headers
    gguf = given.path if header is not None else None
    where = str(given.path.parent if gguf else given.path)
    with quiet(stderr=gguf is not None), explained(name):
        config, dtype = _load_config(where, given, trust_remote_code)
        task = task_of(name, config)
        if on_disk and task == SPEECH:
            raise InputError(
                f"model {name!r} is a speech model, which natprec measures whole, and its weights would stay on disk; "
                "use --weights memory"
            )
        weights: Weights = InMemory()
        parts: dict[str, list[Part]] = {}
        unused: list[str] = []
        unread: tuple[str, ...] = ()
        readable = header is not None and is_known(header)
        if gguf and not readable and (on_disk or len(given.files) > 1):
            remedy = "use --weights memory" if on_disk else "join its parts (llama-gguf-split --merge)"
            raise InputError(f"model {name!r} is a GGUF file of an architecture that is unpacked whole; {remedy}")
        if header is not None and readable and not plain:
            model, weights, lacking = open_gguf(header, config, task, target if on_disk else None)
        elif on_disk:
            model, weights, stored = hollow_model(headers, where, config, task, target, trust_remote_code)
            parts, unused, lacking = stored.parts, stored.unused, stored.missing
        elif given.is_read_here:
            model, stored = filled_model(headers, where, config, task, trust_remote_code)
            parts, unused, lacking = stored.parts, stored.unused, stored.missing
        else:
            model, lacking = _load_weights(where, gguf, config, task, trust_remote_code)
            if header is None:
                parts, unused, _ = placed(headers, model)
            take_apart(model)
        if header is not None:
            unread = passed_over(header, model)
        tokenizer = read_processor(task, where, gguf, trust_remote_code, config)
        distortion, head = task.distortion, None
        others = {} if gguf else code_files(where) | companions(name, where)
        if task == ENCODER:
            distortion, head = embedding_distortion(name, where), after_pooling(name, where)
            head = None if head is None else head.to(target)
    missing = sorted(lacking)
    if missing and not task.does_without(model, missing):
        raise ModelError(
            f"model {name!r} lacks {len(missing)} tensors, the first is {missing[0]!r}; "
            "they would be random numbers: download the checkpoint again or use one saved with its head"
        )
    if not task.convolutions:
        refuse_without_linear(model)
    refuse_unmerged(name, unused)
    model.eval().requires_grad_(False)
    known = {own: FLOATS[headers[several[0][1]].dtype] for own, several in parts.items()
             if headers[several[0][1]].dtype in FLOATS}  # fmt: skip
    common, dtypes = stored_dtypes(model, known)
    storage_dtype = choose_storage_dtype(common if common in HALF else dtype, model, weights)
    weights.dtypes = exceptions(common, dtypes, storage_dtype) | whole_vectors(task, common, dtypes, model)
    leftovers = replace(
        Leftovers(unread=unread) if gguf else find_leftovers(given.path, given.files, headers, unused, model),
        head=settle_head(model),
        adapted=given.adapted,
    )
    if weights.whole:
        check_finite(model)
        with explained(name):
            model.to(target)  # type: ignore[arg-type]  # transformers' wrapper hides nn.Module.to's signature
    return LoadedModel(
        name,
        model,
        tokenizer,
        storage_dtype,
        given.nbytes or None,
        task,
        distortion,
        others,
        weights,
        gguf,
        trusted=trust_remote_code,
        leftovers=leftovers,
        head=head,
        revision=given.revision,
        source_format=given.format,
    )


def stored_elements(name: str) -> int | None:
    """Weights of a model that can be left on disk, counted without loading it; None where that is not known."""
    if local_path(name) is None:
        return stored_on_hub(name)
    given = find(name)
    return given.elements if given.gguf is None or is_known(given.gguf) else None


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


def _load_config(where: str, given: Given, trust_remote_code: bool) -> tuple[PreTrainedConfig, torch.dtype | None]:
    """The checked config and the dtype it declares; loading in float32 overwrites the latter."""
    config = config_of(where, trust_remote_code, **({} if given.gguf is None else {"gguf_file": str(given.path)}))
    if given.gguf is not None:
        inner = expert_size(given.gguf)
        if inner is not None and hasattr(config, "moe_intermediate_size"):
            config.moe_intermediate_size = inner
        if len(given.files) > 1 and any(tensor.name == "output.weight" for tensor in given.gguf.tensors):
            config.tie_word_embeddings = False  # transformers looks for the head in the first part alone
    for part in (config, config.get_text_config()):
        for key in KEYS:
            if given.format and hasattr(part, key):
                delattr(part, key)
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return config, getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_weights(
    where: str, gguf: Path | None, config: PreTrainedConfig, task: Task, trust_remote_code: bool
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
    model, report = model_of(
        where, task, trust_remote_code, config=config, use_safetensors=True, output_loading_info=True, **arguments
    )
    if gguf and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is dense now, and is saved as such
    if not gguf:
        read_generation_config(model, where)
    return model, set(report["missing_keys"])
