"""
How do I resume a training run that was killed?
===============================================

Give ``sd.fit`` a folder, and call it again with ``resume=True``: it continues from the newest
valid checkpoint. On the CPU the weights are then bit-identical to those of a run without
interruption. Look for the losses of the resumed run, which lie on the others.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.05, 0.05])
data = law.sample(2000, seed=0)
recipe = sd.Recipe(steps=200, batch_size=64, lr=2e-3)


def new_model():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=32)
    return sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")


def killed(record):  # stands for a crash of the process at update 130
    if record.step == 130:
        raise RuntimeError("power failure")


folder = Path(tempfile.mkdtemp()) / "run"
settings = {"folder": folder, "log": sd.Log(save_every=50), "progress": False}
try:
    sd.fit(new_model(), data, recipe, callback=killed, **settings)
except RuntimeError as error:
    print("the run ended:", error)

resumed = new_model()
records = sd.fit(resumed, data, recipe, resume=True, **settings)
print(f"resumed at update {records[0].step} and ended at {records[-1].step}")

whole = new_model()
uninterrupted = sd.fit(whole, data, recipe, progress=False)
pairs = zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
print("the same weights:", all(torch.equal(a, b) for a, b in pairs))

fig, ax = plt.subplots(figsize=(5.5, 3))
for name, run, width in (("without interruption", uninterrupted, 3), ("resumed", records, 1)):
    ax.plot([r.step for r in run], [float(r.loss) for r in run], lw=width, label=name)
ax.axvline(130, color="k", lw=0.8, ls="--", label="killed")
ax.set(xlabel="update", ylabel="loss", ylim=0)
ax.legend()

# %%
# **What is in the folder:**

print(sorted(path.name for path in folder.iterdir()))
print(sorted(path.name for path in (folder / "checkpoints").iterdir()))

# %%
# **A time limit.** With ``minutes=`` a run ends after that time with a checkpoint, as it does after
# Ctrl-C, SIGTERM and SIGHUP. So a job in a queue that is stopped and started again needs only one
# command, with ``resume=True`` in Python or ``--resume`` on the command line.
#
# **Other data or another recipe are refused**, because the result would belong to neither run:

try:
    sd.fit(new_model(), data + 1, recipe, resume=True, **settings)
except ValueError as problem:
    print(str(problem).replace(str(folder), "FOLDER"))

# %%
# **Pitfalls.** At most ``save_every`` updates are repeated after a kill: choose it so that these
# take a few minutes. Without ``resume=True`` a folder with a run in it is refused. Bit-identical
# weights are promised on the CPU only.
#
# Reference: :doc:`training </training>`.
