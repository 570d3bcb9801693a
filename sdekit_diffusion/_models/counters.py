"""The counters of a sample's random stream, one for each purpose. sdekit uses those from 0 up for
steps, -1 for the initial state, and those from -2^20 down for probes. The steps of the chain of a
variational bound use those from BOUND up.
"""

DEQUANTISATION = -3
TIME = -4
NOISE = -5
COMPONENT = -6
POINT = -7
SCALE = -8
ANCHOR = -9
FLIP = -10
START = -11
SHIFT = -12
MEASUREMENT = -13
DIRECTION = -14
DROP = -1024  # and one below for each further condition
RESAMPLING = -(1 << 17)  # and one above for each step
CLASSES = -(1 << 18)  # and two below for each evaluation
BOUND = -(1 << 19)
