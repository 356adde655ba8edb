"""From a measurement to a plan: arithmetic on measured steps, never a model run."""

from natprec.solver.choices import Choice
from natprec.solver.plan import Plan
from natprec.solver.solve import solve

__all__ = ["Choice", "Plan", "solve"]
