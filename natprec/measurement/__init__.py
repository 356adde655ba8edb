"""What each width costs at each site: forward KL and gradient distortion, in one sweep."""

from natprec.measurement.curves import Curve
from natprec.measurement.measurement import Header, Measurement

__all__ = ["Curve", "Header", "Measurement"]
