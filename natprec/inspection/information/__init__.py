"""How much information a set of codes carries, what a map of it erases, and what erasing costs (T7-T9)."""

from natprec.inspection.information.codebook import Codebook, Recoding, recode
from natprec.inspection.information.grids import LosslessGrid, lossless_grid
from natprec.inspection.information.landauer import BOLTZMANN, landauer_joules

__all__ = ["BOLTZMANN", "Codebook", "LosslessGrid", "Recoding", "landauer_joules", "lossless_grid", "recode"]
