"""Reading a frozen network at many depths and places: means, deviations, grids and tokens of its stages."""

from mtl.networks.readout.levels import Choice, Level, check_choice
from mtl.networks.readout.pooling import Positions, precise
from mtl.networks.readout.reading import Readout

__all__ = ["Choice", "Level", "Positions", "Readout", "check_choice", "precise"]
