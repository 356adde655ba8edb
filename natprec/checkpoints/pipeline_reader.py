"""The quantized part of a pipeline as a dense network in float32: what the judge runs."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from natprec.checkpoints.sdnq import METHOD, SdnqWeights
from natprec.checkpoints.unpacked import Unpacked, lacking, tensor_files
from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.models.checksums import refuse_damaged
from natprec.models.config_file import KEY
from natprec.models.pipeline_loading import empty_network
from natprec.models.pipelines import PipelineFolder
from natprec.models.stored_config import StoredConfig


def opened_pipeline(folder: Path) -> PipelineFolder:
    """The pipeline in a folder.

    Raises:
        InputError: there is none.
    """
    found = PipelineFolder.found(folder)
    if found is None:
        raise InputError(f"{str(folder)!r} is no pipeline of diffusers: it has no model_index.json")
    return found


def load_part(folder: Path, name: str) -> nn.Module:
    """A part with its weights reconstructed from codes.

    Raises:
        InputError: the folder is no pipeline.
        ModelError: a file is damaged, or a tensor missing.
    """
    pipeline = opened_pipeline(folder)
    try:
        refuse_damaged(pipeline.weight_files(name), ours=(folder / "plan.json").is_file())
        network = empty_network(pipeline, name)
        described = pipeline.described(name).get(KEY) or {"config_groups": {}}
        files = tensor_files(folder / name)
        stored = (
            SdnqWeights(described, files, network)
            if described.get("quant_method") == METHOD
            else Unpacked(StoredConfig(folder / name, described, files), network)
        )
        lacking(network, stored.names)
        network.load_state_dict({key: stored.tensor(key).float() for key in stored.names}, strict=False)
    except NatprecError:
        raise
    except Exception as error:
        raise ModelError(
            f"the {name} of {str(folder)!r} cannot be loaded ({first_line(error)}); quantize again"
        ) from error
    return network.eval().requires_grad_(False)
