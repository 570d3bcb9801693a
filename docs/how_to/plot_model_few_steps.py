"""
How do I distil a model to sample in two steps?
===============================================

Solve the flow of the trained model, the teacher, accurately from many samples of noise
(``sd.trajectories``). Train a copy of the network, the student, so that each of two ``"ddim"``
steps ends where these solutions are. The student then samples with two evaluations on its own grid.
Look for the student's samples, on the right, which are nearly those of the teacher with 100
evaluations.
"""

import copy

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

torch.manual_seed(0)
law = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
net = sd.nets.MLP(shape=(2,), width=64)
teacher = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
sd.fit(teacher, law.sample(4000, seed=0), sd.Recipe(steps=200, lr=3e-3), progress=False)

solutions = sd.trajectories(teacher, 1000, steps=2, seed=1)
student = copy.deepcopy(teacher)
recipe = sd.Recipe(steps=250, lr=2e-3, weighting="data")
sd.fit(student, solutions.steps(), recipe, progress=False)

x_T = torch.randn(500, 2, generator=torch.Generator().manual_seed(2))
drawn = {
    "teacher, 100 evaluations": sd.sample(teacher, x_T=x_T),
    "teacher, 2 evaluations": sd.sample(teacher, x_T=x_T, steps=2),
    "student, 2": sd.sample(student, x_T=x_T, method="ddim", grid=solutions.sigmas),
}
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), sharex=True, sharey=True)
for ax, (name, x) in zip(axes, drawn.items(), strict=True):
    ax.plot(*x.T, ".", ms=2)
    ax.set(title=name, xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")

# %%
# Distances from data, beside the distance between two sets of data:

data = law.sample(8000, seed=3)
floor = sd.metrics.sampling_floor(sd.metrics.energy_distance, data, 500)
for name, x in drawn.items():
    print(f"{name:25} {sd.metrics.energy_distance(x, data[:500]):.3f}")
print(f"{'floor':25} {floor.mean:.3f} ± {floor.std:.3f}")

# %%
# **Keep the grid with the student**, since on another grid its samples are bad: ``sd.fit(...,
# folder=..., notes={"sigmas": solutions.sigmas.tolist()})``.

print("noise levels of the student:", [round(float(s), 3) for s in solutions.sigmas])

# %%
# **Labels and guidance.** Solutions of ``teacher.given(label=y)`` keep their labels: train with
# ``drop=0.0``. The student of a guided teacher needs no guidance, so each of its steps has one
# evaluation of the network instead of two.
#
# **Pitfalls.** A student can be no better than its teacher: check the teacher first
# (:doc:`plot_model_distinguishable`). From about eight evaluations on, a better sampler without
# distillation may do as well (:doc:`plot_model_sampler`).
#
# Reference: :doc:`training </training>`.
