"""A peer of modules that does what it is told: rounds its Linears, or rounds them coarsely."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

PEER = Path(__file__).parents[2] / "natprec" / "comparison" / "peers" / "modules.py"
_spec = importlib.util.spec_from_file_location("peer_modules", PEER)
_real: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(_real)  # type: ignore[union-attr]

save, dense, report, PACKAGES = _real.save, _real.dense, _real.report, dict[str, str]()


def quantize(job: Any, model: Any, ids: Any) -> Any:
    model.to(job.dtype)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found = {}
    step = {"round": 2.0**-job.bits, "coarse": 2.0 ** (1 - job.bits)}[job.settings["do"]]
    for place, weight in _real.linears(model):
        scale = weight.abs().amax(1, keepdim=True).float() * step * 2
        found[place] = (weight.float() / scale).round() * scale, weight.numel() * job.bits // 8 + 2 * len(weight)
    return before, found
