"""The formats that are measured of each site: what its engine runs, in groups that divide its rows."""

from __future__ import annotations

from collections.abc import Sequence

from natprec.engines.architectures import takes_embedding, takes_head
from natprec.formats import EngineProfile, Format
from natprec.formats.engines import GROUP_SIZES
from natprec.models.weight_sites import Site, refuse_indivisible, refuse_unblocked, together

FINE_GROUPS = (16, 32)
"""Sizes of groups of a packed embedding, beside the one that is asked for."""


def formats_to_measure(
    sites: Sequence[Site], architecture: str, profile: EngineProfile, group_size: int | None, measured: str
) -> dict[str, tuple[Format, ...]]:
    """Site name → formats: see `Subject.candidates`.

    Args:
        architecture: the model's class, as a checkpoint names it.
        measured: 'weights', or 'all' with the weights per row that some engines multiply with rounded activations.
    Raises:
        InputError: the group size, or the blocks of all GGUF types, divide no Linear.
    """
    linears = [site for site in sites if site.role != "embedding"] or sites
    if profile.container == "gguf":  # their groups are their own
        types = profile.measured(())
        if not any(fmt.divides(site.shape[1]) for fmt in types for site in linears):
            refuse_unblocked(sites, types)
        return {site.name: tuple(fmt for fmt in types if fmt.divides(site.shape[1])) for site in sites}
    if group_size is None:
        formats = profile.measured(GROUP_SIZES)
        return {site.name: tuple(fmt for fmt in formats if _has(site, fmt, profile, architecture)) for site in sites}
    asked = profile.measured((group_size,))
    if not any(fmt.divides(site.shape[1]) for fmt in asked for site in linears):
        refuse_indivisible(sites, asked)
    more = profile.paired() if measured == "all" else ()
    alike: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        alike.setdefault(together(site, profile), []).append(site)
    found: dict[str, tuple[Format, ...]] = {}
    for members in alike.values():
        size = profile.fitting(group_size, [site.shape[1] for site in members])
        size = profile.grouped(members[0].role, size) if members[0].role == "convolution" else size
        formats = asked if size == group_size else profile.measured(() if size is None else (size,))
        formats += tuple(fmt for fmt in more if size is not None and fmt not in formats)
        if size != group_size:
            formats = tuple(fmt for fmt in formats if all(_is_smaller(fmt, site) for site in members))
        divided = tuple(fmt for fmt in formats if all(_has(site, fmt, profile, architecture) for site in members))
        found |= {site.name: divided for site in members}
    return {site.name: found[site.name] + _finer(site, found[site.name], profile, architecture) for site in sites}


def _finer(site: Site, known: tuple[Format, ...], profile: EngineProfile, architecture: str) -> tuple[Format, ...]:
    """Formats in smaller groups for an embedding that a GPU's engine looks up packed: no kernel asks for larger
    ones, and its widths are few (LOG.md, 2026-11-30).
    """
    if profile.gpu is None or site.role != "embedding":
        return ()
    finer = [fmt for each in profile.formats.get("embedding", ()) for fmt in each.at(FINE_GROUPS)]
    return tuple(fmt for fmt in finer if fmt not in known and _has(site, fmt, profile, architecture))


def _has(site: Site, fmt: Format, profile: EngineProfile, architecture: str) -> bool:
    """Whether a site can have a format; with a GPU also whether the engine reads codes of this model's site."""
    if profile.gpu is not None and profile.name == "vllm":
        if site.role == "embedding" and not takes_embedding(architecture):
            return False
        if site.role == "head" and not takes_head(architecture):
            return False
    if profile.container == "bitsandbytes" and site.experts:
        return False  # transformers keeps experts as one tensor, which bitsandbytes leaves alone
    return profile.fits(site.role, fmt, *site.shape)


def _is_smaller(fmt: Format, site: Site) -> bool:
    return fmt.stored_bytes(*site.shape) < 2 * site.elements
