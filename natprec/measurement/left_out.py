"""Says, before anything is measured, which weights of a model a GPU's formats leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from natprec.engines.architectures import takes_embedding
from natprec.formats import EngineProfile, Format, PerBlock, engine_profile
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import Site


def left_out(subject: Subject, profile: EngineProfile, formats: Mapping[str, Sequence[Format]]) -> list[str]:
    """Sentences; none without a GPU.

    Args:
        formats: site → its candidates.
    """
    if profile.gpu is None:
        return []
    found = []
    if not profile.untested:
        wider = engine_profile(profile.name, profile.gpu, untested=True, portable=profile.portable)
        more = set(wider.measured((64,))) - set(profile.measured((64,)))
        found.append(
            f"{profile.name}'s code loads {len(more)} more formats of Linears on {profile.gpu}, which no run of it has "
            "been seen to load: --untested takes them"
        )
    elif "embedding" in profile.formats and not takes_embedding(subject.architecture):
        found.append(
            f"vLLM's {subject.architecture} does not hand its quantization config to the embedding: that is written in "
            "16 bits, and a head that is tied to it with it"
        )
    elif any(site.tied for site in subject.sites) and not subject.segmented.weights.whole:
        found.append("weights are on disk, so the head stays tied to the embedding and both at 16 bits")
    misfits = _misfits(subject.sites, profile, formats)
    if misfits:
        found.append("some formats do not fit every weight and are left out there: " + "; ".join(misfits))
    return found


def _misfits(sites: Sequence[Site], profile: EngineProfile, formats: Mapping[str, Sequence[Format]]) -> list[str]:
    """Floating-point formats and the weights whose shape they do not fit."""
    found = []
    for fmt in profile.measured(()):
        without = [site for site in sites if site.role == "linear" and fmt not in formats[site.name]]
        if without and fmt.floating:
            by, first = fmt.scaling.granularity, without[0]
            size = f"blocks of {by.rows} x {by.columns}" if isinstance(by, PerBlock) else f"groups of {fmt.block}"
            more = f" and {len(without) - 1} more" if without[1:] else ""
            found.append(f"{fmt.name} ({size}) {first.name!r} ({first.shape[0]} x {first.shape[1]}){more}")
    return found
