"""Keys and values where a cache would store them: after the rotary embedding, before heads are repeated.

transformers' models hand them to a function that they look up by name (its attention interface). While anything
is watched, these functions stand behind one that lets hooks see, and replace, keys and values first. A model
that computes attention without the interface is never seen: it has no key and value sites.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

States = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(attention module, keys, values), both (batch, heads, time, head size), to what attention then uses."""

_watched: WeakKeyDictionary[nn.Module, list[States]] = WeakKeyDictionary()
_installed: list[str] = []


class AttentionHook:
    """A hook on an attention module's keys and values; later ones see what earlier ones returned."""

    def __init__(self, module: nn.Module, states: States) -> None:
        self.module, self.states = module, states
        _watched.setdefault(module, []).append(states)
        _install()

    def remove(self) -> None:
        """Stop watching; the last to stop puts the functions back."""
        hooks = _watched.get(self.module, [])
        if self.states in hooks:
            hooks.remove(self.states)
            if not hooks:
                del _watched[self.module]
        if not _watched:
            _uninstall()


def _install() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _installed:
        return
    for name in ["eager", *ALL_ATTENTION_FUNCTIONS]:
        original = None if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        ALL_ATTENTION_FUNCTIONS[name] = _behind_hooks(original)
        _installed.append(name)


def _uninstall() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    while _installed:
        del ALL_ATTENTION_FUNCTIONS[_installed.pop()]


def _behind_hooks(original: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function, after the hooks of the module that calls it; None: the module's own eager one."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        for states in _watched.get(module, []):
            key, value = states(module, key, value)
        function = original or sys.modules[type(module).__module__].eager_attention_forward
        return function(module, query, key, value, *args, **kwargs)

    return attend
