"""
NCSN and NCSNv2
===============

Annealed Langevin dynamics with the settings of both papers, on the exact scores of a set of digits
with noise. The techniques of the second paper choose the noise levels, their number and the step
from the data. Compare the rows: look for samples that are not digits.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
from networks import pixels, row

source = sd.data.load("digits")
images = (source.train[:400].float() / 8 - 1).double()
law = sd.EmpiricalMixture(images, std=0.05)
settings = sd.ncsnv2_settings(images)
fig, axes = plt.subplots(2, 12, figsize=(8, 1.9))
first = sd.sample(law, 12, sde=settings.sde, method="ncsn", denoise=True, seed=0)
second = sd.sample(law, 12, sde=settings.sde, method=settings.method, denoise=True, seed=0)
row(axes[0], pixels(first, source), "NCSN: 10 levels, 100 moves each")
row(
    axes[1],
    pixels(second, source),
    f"NCSNv2: {len(settings.sigmas)} levels, {settings.method.moves} moves",
)
