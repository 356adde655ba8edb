"""What a matrix product costs, in microseconds or joules: a measured table, or a roofline that says so."""

from natprec.costs.choose import MINIMIZE, PREFILL_TOKENS, costs_for
from natprec.costs.model import CostModel, Estimate
from natprec.costs.table import CostTable

__all__ = ["MINIMIZE", "PREFILL_TOKENS", "CostModel", "CostTable", "Estimate", "costs_for"]
