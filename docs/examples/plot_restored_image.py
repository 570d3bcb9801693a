"""
A restored image and its uncertainty
====================================

The upper half of a digit is observed, with noise. Samples of the posterior agree where it is
observed and differ where it is not: look at the standard deviation. Several digits can explain the
same upper half. Right: the pixels that are not observed, with intervals that contain 80 % of the
samples, in the order of the medians. Look for true values outside, in red: about a fifth, if the
intervals are right. The pixels of an image depend on each other, so the share varies between sets
of four images.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

model, source = digits()
model = model.unconditional()
truth = model.scale.encode(source.test[3:7], 0.5).float()
known = torch.zeros(8, 8, dtype=torch.bool)
known[:4] = True
observation = sd.LinearObservation.simulated(sd.Mask(known), truth, 0.3**2, seed=0)
found = sd.sample_posterior(model, observation, 512, particles=512, steps=40, seed=0)
each = [sd.WeightedSamples(*one) for one in zip(found.x, found.log_weights, strict=True)]
samples = torch.stack([one.resampled(512, seed=0) for one in each])
low, median, high = samples[..., ~known].quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1).flatten(1)
hidden = truth[..., ~known].flatten()
inside = (low <= hidden) & (hidden <= high)

fig = plt.figure(figsize=(9, 3.4))
left, right = fig.subfigures(1, 2, width_ratios=[3, 2])
axes = left.subplots(4, 8)
for i, line in enumerate(axes):
    seen = truth[i].clone()
    seen[:, ~known] = -1
    images = [truth[i], seen, *samples[i, ::128], each[i].mean(), 2 * each[i].std() - 1]
    row(line, pixels(torch.stack(images), source))
for ax, name in zip(
    axes[0], ("truth", "observed", "samples", "", "", "", "mean", "std. dev."), strict=True
):
    ax.set_title(name, fontsize=8)
ax = right.subplots()
order = median.argsort()
place = torch.arange(len(order))
ax.vlines(place, low[order], high[order], color="0.8", lw=1.5)
colours = ["k" if within else "C3" for within in inside[order]]
ax.scatter(place, hidden[order], s=5, c=colours, zorder=3)
ax.set(xlabel="pixel that is not observed", ylabel="value")
ax.set_title(f"{inside.float().mean():.0%} within their interval of 80 %", fontsize=9)
