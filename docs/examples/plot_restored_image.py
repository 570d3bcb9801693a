"""
A restored image and its uncertainty
====================================

The upper half of a digit is seen, with noise. Samples of the posterior agree where it is seen and
differ where it is not: look at the standard deviation. Several digits can explain the same upper
half.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

import warnings

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
from networks import digits, pixels, row

model, source = digits()
model = model.unconditional()
truth = model.scale.encode(source.test[3:7], 0.5).float()
mask = sd.data.load("digits").test[:1, 0] * 0
mask = mask[0].bool()
mask[:4] = True
observation = sd.LinearObservation.simulated(sd.Mask(mask), truth, 0.02, seed=0)
with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # 256 particles are few for an image: see the page of posteriors
    posterior = sd.sample_posterior(model, observation, 256, particles=256, steps=40, seed=0)
fig, axes = plt.subplots(4, 8, figsize=(7, 3.8))
for i, line in enumerate(axes):
    seen = truth[i].clone()
    seen[:, ~mask] = -1
    one = sd.WeightedSamples(posterior.x[i], posterior.log_weights[i])
    samples = one.resampled(4, seed=0)
    images = [truth[i], seen, *samples, one.mean(), 2 * one.std() - 1]
    row(line, [pixels(image[None], source)[0] for image in images])
for ax, name in zip(
    axes[0], ("truth", "observed", "samples", "", "", "", "mean", "std. dev."), strict=True
):
    ax.set_title(name, fontsize=8)
