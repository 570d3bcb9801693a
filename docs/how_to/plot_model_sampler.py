"""
How do I choose a sampler and the number of steps?
==================================================

Solve the probability flow once with adaptive steps and a small tolerance, and measure the distance
of each method from that solution, sample by sample, for the same noise ``x_T``. This needs no data
and no metric of images, and works for any model. Look for the lowest line.
"""

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

model = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])  # or your own
x_T = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
converged = sd.sample(model, x_T=x_T, sde="vp", method=sd.AdaptiveFlow(1e-6, 1e-6))


def error(method, steps):
    """The root mean square distance from the converged flow."""
    x = sd.sample(model, x_T=x_T, sde="vp", method=method, steps=steps)
    return float((x - converged).square().mean().sqrt())


evaluations = [5, 8, 12, 20, 40]
fig, ax = plt.subplots(figsize=(5, 3.4))
for method in ("default", "unipc", "dpmpp_2m", "ddim"):
    errors = [error(method, steps) for steps in evaluations]
    ax.loglog(evaluations, errors, "o-", ms=3, label=method)
ax.set(xlabel="evaluations per sample", ylabel="root mean square error")
ax.set_xticks(evaluations, labels=[str(n) for n in evaluations])
ax.minorticks_off()
ax.legend()

# %%
# Each method has its own default grid here. Take the smallest number of evaluations whose error
# you accept. The unit is that of the data, here with a standard deviation of about 1.

for steps in evaluations:
    print(f"{steps:3} evaluations: error {error('default', steps):.1e}")

# %%
# **The grid matters too.** ``steps`` counts steps: methods with two evaluations per step, such as
# ``"heun"``, take half as many for the same cost.

for grid in (None, "karras", "quadratic", "log_snr"):
    x = sd.sample(model, x_T=x_T, sde="vp", steps=12, grid=grid)
    print(f"{grid or 'the default grid':17} {float((x - converged).square().mean().sqrt()):.1e}")

# %%
# **Methods with noise**, such as ``"sde"``, have no solution to which single samples converge.
# Compare the law of their samples with data instead, by a distance beside its sampling floor.

x = sd.sample(model, 2000, sde="vp", method="sde", steps=50, seed=0)
data = model.sample(8000, seed=1)
floor = sd.metrics.sampling_floor(sd.metrics.energy_distance, data, 2000)
print(f"distance {sd.metrics.energy_distance(x, data[:2000]):.3f}, floor {floor.mean:.3f}")

# %%
# **Pitfall.** The error of the solver is one of two: if the network is wrong, the converged flow
# is wrong as well (:doc:`plot_model_distinguishable`).
#
# Reference: :doc:`diffusions and samplers </samplers>`, :doc:`benchmarks </benchmarks>`.
