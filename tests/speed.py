"""How long a test may take on this machine, at this moment: limits are stated for the machine of `REFERENCE`.

A limit in plain seconds says as much of a runner as of the code: one machine of those that run these tests takes half
again as long as another, and longer still while the other core works. So each limit is multiplied by how much longer
a fixed piece of work takes here and now than on that machine, and never made stricter.
"""

from __future__ import annotations

import json
import time

import numpy as np

REFERENCE = 0.010
"""Seconds of the processor that `_work` takes where limits hold as they stand: chosen, since nobody timed it where they
were set. A machine with AVX2 alone, on which one failed, takes 0.0145."""


def allowed(seconds: float) -> float:
    """The limit, for this machine; take it right after what it limits, so that both have the same neighbours."""
    taken = []
    for _ in range(5):
        start = time.process_time()
        _work()
        taken.append(time.process_time() - start)
    return seconds * max(1.0, min(taken) / REFERENCE)


def _work() -> None:
    """What natprec's own Python does: dictionaries, strings, JSON, and numpy on short arrays."""
    table = {f"model.layers.{number}": [number / 7, number / 11] for number in range(2000)}
    assert json.loads(json.dumps(table)) == table
    total = np.zeros(8)
    for each in table.values():
        total = total + np.array(each * 4)
    assert sorted(table, key=lambda name: table[name][0])[0] == "model.layers.0"
