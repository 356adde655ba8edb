"""The command that stands in plan.json and verification.json: with the options that were given, and no path."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from natprec.config import COMMANDS, OPTIONS, QuantizeConfig
from natprec.formats import CHANNEL
from natprec.models.devices import device_name
from natprec.utils.provenance import Provenance, command_line, now, versions
from natprec.utils.records import public_name

if TYPE_CHECKING:
    from natprec.measurement.subject import Subject

_PLACES = ("model", "data", "eval_data", "images", "prompts", "costs")


def command_of(command: str, config: QuantizeConfig, *arguments: str) -> str:
    """A command of natprec with its arguments and those options that are not the default, files by their names."""
    given = []
    for name in COMMANDS[command]:
        value, field = getattr(config, name), QuantizeConfig.__dataclass_fields__[name]
        if value != field.default:
            given.append((OPTIONS[name].flag, _shown(name, value)))
    return command_line(" ".join(("natprec", command, *arguments)), given)


def _shown(name: str, value: Any) -> Any:
    if name in _PLACES:
        return public_name(value)
    if name == "group_size":
        return "auto" if value is None else "channel" if value == CHANNEL else value
    return value


def of_subject(subject: Subject, command: str, config: QuantizeConfig) -> Provenance:
    """The provenance of a verification of a checkpoint that has no measurement."""
    return Provenance(
        versions(), now(), command, device_name(config.device), config.seed, subject.name, subject.digest,
        subject.revision,
    )  # fmt: skip


def again(known: Provenance | None, subject: Subject, command: str, config: QuantizeConfig) -> Provenance:
    """The provenance of a verification: its own, with the calibration text that the plan knows of."""
    own = of_subject(subject, command, config)
    return own if known is None else replace(own, calibration=known.calibration)
