"""
A diffusion model, from raw images to likelihood and posterior
==============================================================

The data are 1,797 images of written digits, 8 x 8 pixels each, which come with scikit-learn. This
tutorial trains a network on them, draws new digits, measures how well the model describes digits
that it was not trained on, completes a digit of which only a part is known, and saves the model.

``networks`` is the file :download:`networks.py </examples/networks.py>`: save it beside the
script. Its ``digits()`` trains the network when it is first called, for about a minute.
"""

# %%
# Raw images
# ----------
# ``data.load`` knows some data sets by name and reads files and folders of your own (:doc:`/data`).
# Here it returns integers from 0 to 16 of shape ``(n, 1, 8, 8)``, their labels, a held-out part,
# and the *scale* that turns pixel levels into the numbers between -1 and 1 that a network receives.

import tempfile

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch
from networks import digits, pixels, row

source = sd.data.load("digits")
print(tuple(source.train.shape), source.train.dtype, "levels:", source.scale.levels)
data = source.scale.encode(source.train, 0.5).float()
fig, axes = plt.subplots(1, 12, figsize=(8, 0.9))
row(axes, pixels(data[:12], source), "raw images")

# %%
# A model and its training run
# ----------------------------
# A diffusion adds noise to data, :math:`x_t = \alpha x_0 + \sigma \varepsilon`, until almost only
# noise is left. A network is trained to remove it, at all noise levels. A ``ScoreModel`` holds the
# network, the diffusion (``"vp"``) and what the output of the network is (here the velocity
# :math:`v = \alpha \varepsilon - \sigma x_0`). ``fit`` trains it by a ``Recipe``.

torch.manual_seed(0)
net = sd.nets.UNet(channels=1, width=24, classes=10)  # or any net(x, t) of your own
short = sd.ScoreModel(net, "vp", "velocity", shape=(1, 8, 8), conditioning="log_snr")
recipe = sd.Recipe(steps=60, batch_size=64, seed=0, drop=0.15)
sd.fit(short, source, recipe, progress=False)

# %%
# These are 60 updates. The network that is used below was trained for 1,500, in the same way:
# ``digits()`` trains it once and stores it.

model, _ = digits()

# %%
# Samples
# -------
# ``sample`` solves the reverse equation from noise to data. Sample :math:`i` depends on the seed
# and on :math:`i` alone. The network was trained with labels, of which 15 % were dropped
# (``drop=0.15``), so it can draw digits of a given class, or of any. Look for what the longer
# training run changes, from the first row to the second, and for the classes 0 to 9 in the third.

fig, axes = plt.subplots(3, 10, figsize=(7, 2.6))
labels = torch.arange(10)
for line, made, title in (
    (axes[0], short.unconditional(), "after 60 updates"),
    (axes[1], model.unconditional(), "after 1,500 updates"),
    (axes[2], model.given(label=labels), "with the labels 0 to 9"),
):
    row(line, pixels(sd.sample(made, 10, seed=0, steps=20), source), title)

# %%
# What the noise levels do
# ------------------------
# The log-SNR :math:`l = \log(\alpha / \sigma)` measures how much noise a state has. A model is its
# *denoiser*: the mean :math:`D` of the images from which a noisy state :math:`u = a x_0 + b
# \varepsilon`, :math:`a^2 + b^2 = 1`, can come. Look at :math:`D`, from left to right, which is the
# order of the sampler: with much noise it is the mean of all digits; with less noise it shows the
# class, then the shape; with little noise only the remaining noise is removed. Above is u, below D.

levels = [-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
digit = source.scale.encode(source.test[3:4], 0.5).float()
noise = torch.randn(digit.shape, generator=torch.Generator().manual_seed(0))
fig, axes = plt.subplots(2, len(levels), figsize=(8, 2.3))
noisy = [sd.signal_scale(l) * digit + sd.noise_scale(l) * noise for l in levels]
with torch.no_grad():
    denoised = [
        model.unconditional().predict_data(l, u) for l, u in zip(levels, noisy, strict=True)
    ]
row(axes[0], pixels(torch.cat(noisy), source))
row(axes[1], pixels(torch.cat(denoised), source))
for ax, l in zip(axes[0], levels, strict=True):
    ax.set_title(f"l = {l:g}", fontsize=9)
axes[0, 0].set_ylabel("u")
axes[1, 0].set_ylabel("D")

# %%
# Likelihood
# ----------
# The probability flow, the reverse equation without noise, gives the log-density of every image. In
# *bits per dimension* it is the number of bits that a code based on the model needs per pixel:
# smaller is better, and without a model it is :math:`\log_2 17 = 4.09`. Every value has a standard
# error, from the random estimate of a trace; that of the mean includes the spread over images. The
# five most likely images are on the left and the five least likely on the right. Look for simple
# strokes on the left, such as those of a 1, and for more complicated shapes on the right.

images = source.test[:60]
settings = {"low": source.scale.low, "high": source.scale.high, "levels": source.scale.levels}
coarse = sd.AdaptiveFlow(1e-2, 1e-2)
bits = sd.bits_per_dim(model.unconditional(), images, **settings, method=coarse, seed=0)
print(f"{bits.mean:.3f} +- {bits.mean_stderr:.3f} bits per dimension")

order = bits.value.argsort()
ends = torch.cat([order[:5], order[-5:]])
fig, axes = plt.subplots(1, 10, figsize=(8, 1.2))
row(axes, pixels(source.scale.encode(images[ends], 0.5), source))
for ax, i in zip(axes, ends.tolist(), strict=True):
    ax.set_xlabel(f"{bits.value[i]:.2f}\n± {bits.stderr[i]:.2f}", fontsize=8)

# %%
# A posterior
# -----------
# Only the upper half of a digit :math:`x` is seen, with noise: :math:`y = A x + \mathcal{N}(0, R)`.
# The model is the prior, and ``sample_posterior`` draws from :math:`p(x \mid y)`. The samples have
# weights, which make them exact for the discretised reverse process although they are proposed by
# an approximation; the same weights give the evidence :math:`\log p(y)` with its standard error.
# Look for where the samples differ: the standard deviation is large where nothing was seen.

seen = torch.zeros(8, 8, dtype=torch.bool)
seen[:4] = True
observation = sd.LinearObservation.simulated(sd.Mask(seen), digit, 0.3**2, seed=0)
posterior = sd.sample_posterior(
    model.unconditional(), observation, 1024, particles=256, steps=40, seed=0
)
evidence = float(posterior.log_evidence[0])
error = float(posterior.log_evidence_stderr[0])
print(f"log p(y) = {evidence:.2f} +- {error:.2f}")

samples = sd.WeightedSamples(posterior.x[0], posterior.log_weights[0])
known = torch.zeros_like(digit)  # grey where nothing is seen
known[:, :, seen] = observation.y
mean_and_std = [samples.mean()[None], 2 * samples.std()[None] - 1]
pictures = [digit, known, samples.resampled(6, seed=0), *mean_and_std]
fig, axes = plt.subplots(1, 10, figsize=(8, 1.2))
row(axes, pixels(torch.cat(pictures), source))
titles = ("truth", "seen", "samples", *5 * [""], "mean", "std. dev.")
for ax, title in zip(axes, titles, strict=True):
    ax.set_title(title, fontsize=8)

# %%
# Saving and loading
# ------------------
# ``save`` writes a folder: weights as safetensors, the rest as JSON. ``load`` builds the model
# again, with its scale. For a network of your own, pass it as ``net=``.

with tempfile.TemporaryDirectory() as folder:
    sd.save(model, folder)
    loaded = sd.load(folder)
before = sd.sample(model.unconditional(), 2, seed=0, steps=20)
after = sd.sample(loaded.unconditional(), 2, seed=0, steps=20)
print("the same samples:", torch.equal(before, after))
print("as pixel levels:", loaded.scale.decode(after).dtype)

# %%
# What to read next
# -----------------
# :doc:`/training` has resumed runs and measures during a run, :doc:`/samplers` all samplers,
# :doc:`/likelihood` and :doc:`/posteriors` what is exact and what is not. ``make demo`` trains on
# these digits and writes a report.
