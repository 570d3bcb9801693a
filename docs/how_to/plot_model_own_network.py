"""
How do I use my own pretrained network?
=======================================

Wrap it in ``sd.ScoreModel`` and state the diffusion under which it was trained (``sde``), what it
returns (``predicts``) and which label of time it receives (``conditioning``). Then let
``sd.check_model`` denoise a batch of data: it names a wrong convention. Look for the line at 1,
above which the error is larger than that of a linear guess.
"""

import tempfile

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
x = law.sample(1000, seed=0)
vp = sd.VPSDE()


class Network(torch.nn.Module):
    """Stands for yours: it returns the noise, and its labels count 1000 steps from 0."""

    def forward(self, x, label):
        t = (label + 1) / 1000
        return -vp.sigma(t)[:, None] * law.score(t, x, vp)


right = sd.ScoreModel(Network(), vp, "noise", conditioning=(1000, -1), shape=(2,))  # 1000 t - 1
wrong = sd.ScoreModel(Network(), vp, "noise", conditioning="time", shape=(2,))  # t
fig, ax = plt.subplots(figsize=(5, 3.2))
for model, name in ((right, "labels 1000 t - 1"), (wrong, "labels t")):
    check = sd.check_model(model, x, throw=False)
    print(f"{name}: {check.verdict}\n")
    ax.loglog(check.noise, check.ratios, "o-", label=name)
ax.axhline(1.0, color="0.6", lw=0.8)
ax.set(xlabel=r"noise $\sigma / \alpha$", ylabel="error / error of a linear guess")
ax.legend()

# %%
# The model above the line does not denoise. Without ``throw=False`` the check raises an error for
# it. A model with the right conventions is used as any other:

samples = sd.sample(right, 1000, steps=50, seed=0)
print("mean of samples", samples.mean(0).tolist(), "and of the data", x.mean(0).tolist())

# %%
# **Published checkpoints** have readers that know their conventions: ``sd.from_diffusers`` (a
# module with its scheduler, or a folder), ``sd.from_score_sde``, ``sd.from_edm`` and
# ``sd.from_ncsnv2``.
#
# **Further arguments**, such as labels, are given by name: ``model.given(class_labels=y)``.
#
# **Saving.** A checkpoint names no code, so give the network again when you load it:

folder = sd.save(right, tempfile.mkdtemp() + "/model")
again = sd.load(folder, net=Network())
same = sd.sample(again, 5, steps=10, seed=0) - sd.sample(right, 5, steps=10, seed=0)
print("difference after loading:", float(same.abs().max()))

# %%
# **Pitfalls.** Data must be in the range that the network was trained on; ``data_range=(-1, 1)``
# records it. Two mistakes at once are detected but not named. A network that mixes the samples of a
# batch makes samples depend on the batch. The check cannot distinguish labels that differ by one
# step of a thousand.
#
# Reference: :doc:`networks, your own and published ones </networks>`.
