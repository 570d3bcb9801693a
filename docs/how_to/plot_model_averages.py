"""
How do I choose the average of the weights after training?
==========================================================

An average of the weights over the last updates samples better than the last weights, and how wide
it should be is known only afterwards. ``Recipe(widths=...)`` stores snapshots of averages, and
``sd.load(folder, width=...)`` computes the average of any other width from them (post-hoc EMA).
Look for the lowest point of the curve: narrower averages are noisier, and wider ones remember too
much of the start of the training.
"""

import tempfile

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
data = law.sample(4000, seed=0)  # or images
torch.manual_seed(0)
net = sd.nets.MLP(shape=(2,), width=32)
model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
recipe = sd.Recipe(
    steps=600, batch_size=64, lr=1e-2, schedule="constant", seed=0, widths=(0.05, 0.1)
)
folder = tempfile.mkdtemp()  # or a folder that you keep
sd.fit(model, data, recipe, folder=folder, log=sd.Log(snapshots=32), progress=False)


def error(model):
    """Of the denoiser, over all noise levels; for images the Frechet distance of samples."""
    generator = torch.Generator().manual_seed(1)
    x = law.sample(500, seed=1)
    total = 0.0
    for l in torch.linspace(-3.0, 3.0, 13).tolist():
        noise = torch.randn(x.shape, generator=generator)
        u = sd.signal_scale(l) * x + sd.noise_scale(l) * noise
        with torch.no_grad():
            difference = model.predict_data(l, u) - law.predict_data(l, u)
        total += float(difference.square().mean())
    return (total / 13) ** 0.5


widths = [0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25]
errors = [error(sd.load(folder, width=width)) for width in widths]
last = error(sd.load(folder, ema=0))  # the weights after the last update, without an average

fig, ax = plt.subplots(figsize=(5, 3.2))
ax.semilogx(widths, errors, "o-", label="averages")
ax.axhline(last, color="0.6", lw=0.8, label="the last weights")
ax.set(xlabel="relative width of the average", ylabel="error of the denoiser", ylim=(0, 1.1 * last))
ax.set_xticks(widths, [str(width) for width in widths])
ax.minorticks_off()
ax.legend()

# %%
# The width is relative: the standard deviation of the update numbers that are averaged, divided by
# the number of updates.

best = widths[errors.index(min(errors))]
print(f"least error at the width {best}: {min(errors):.3f}, of the last weights {last:.3f}")

# %%
# **From the command line**, the training run takes ``--widths 0.05 0.1``, and the commands that
# load a run take ``--average-width``.
#
# **Pitfalls.** Widths from 0.02 to 0.25 are computed from snapshots of 0.05 and 0.1; the wider, the
# fewer snapshots are needed. The learning rate is constant here. With the default ``"cosine"``,
# which falls to 0, the last weights are about as good as the best average. Choose the width with
# samples or data that you do not report on.
#
# Reference: :doc:`training </training>`.
