"""
NCSN and NCSNv2
===============

Annealed Langevin dynamics with the settings of both papers, on the exact scores of 400 digits with
noise, enlarged to 32 x 32 pixels (Song and Ermon 2020, figure 2). The techniques of the second
paper choose the noise levels, their number and the step from the data. Look at the bars, the shares
of the classes among 128 samples of each method: NCSN begins at noise that is small beside the
distances between images and hardly reaches half of the classes; NCSNv2 reaches each about as often
as the data have it.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import row
from sdekit_diffusion.metrics import nearest

source = sd.data.load("digits")
train, labels = source.reference(400)
# In the span of enlarged images, one of 8 x 8 with four times the values is one of 32 x 32.
images = train.double() / 4
law = sd.EmpiricalMixture(images)
first = sd.ncsn_settings("cifar10", "ncsn")
second = sd.ncsnv2_settings(1024, sigma_max=sd.max_pairwise_distance(images))
generator = torch.Generator().manual_seed(0)
start = 4 * torch.rand(16, 128, 1, 8, 8, generator=generator).double().mean(dim=0)
draws = {
    f"NCSN: {len(first.sigmas)} levels, {first.steps} moves each": sd.sample(
        law, 128, sde=first.sde, method=first.method, x_T=start, denoise=True, seed=0
    ),
    f"NCSNv2: {len(second.sigmas)} levels, {second.steps} moves each": sd.sample(
        law, 128, sde=second.sde, method=second.method, denoise=True, seed=0
    ),
}
expected = torch.bincount(labels, minlength=10) / 400

fig = plt.figure(figsize=(8, 4))
parts = fig.subfigures(2, 1)
for part, (name, x) in zip(parts, draws.items(), strict=True):
    part.suptitle(name, fontsize=9)
    left, right = part.subfigures(1, 2, width_ratios=[3, 2])
    for line, some in zip(left.subplots(2, 8), x[:16, 0].chunk(2), strict=True):
        row(line, some / 4)
    reached = labels[nearest(x, images)[1]]
    ax = right.subplots()
    ax.bar(range(10), torch.bincount(reached, minlength=10) / 128)
    ax.plot(range(10), expected, "k_", ms=14, label="data")
    ax.set(xlabel="class", ylabel="share", xticks=range(10), ylim=(0, 0.45))
    ax.legend()
