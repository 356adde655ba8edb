"""Where precision is measured: weights, and what flows between them."""

from natprec.sites.activation_sites import (
    activation_formats,
    find_activations,
    round_input,
    round_inputs,
    round_site,
    round_states,
    rounded,
)
from natprec.sites.weight_sites import (
    Site,
    find_sites,
    refuse_indivisible,
    refuse_unblocked,
    site_layer,
    site_weight,
    together,
    uneven,
)

__all__ = [
    "Site",
    "activation_formats",
    "find_activations",
    "find_sites",
    "refuse_indivisible",
    "refuse_unblocked",
    "round_input",
    "round_inputs",
    "round_site",
    "round_states",
    "rounded",
    "site_layer",
    "site_weight",
    "together",
    "uneven",
]
