"""Which draw of a sample's random stream is which: sdekit keeps the counters from 0 for steps, -1
for the initial state, and those from -2^20 down for probes. The steps of a chain go up from BOUND.
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
DROP = -1024  # and one below for each further condition
RESAMPLING = -(1 << 17)  # and one above for each step
CLASSES = -(1 << 18)  # and two below for each evaluation
BOUND = -(1 << 19)
