r"""
How do I fit the parameters of an equation to data?
===================================================

If the data are states at short intervals, maximise the likelihood of the steps:
:class:`sdekit.Transitions` has the log-density of each step of a solver, with gradients. The
example fits the rate a, the mean b and the noise s of a square-root process,
:math:`\mathrm{d}x = a (b - x)\,\mathrm{d}t + s \sqrt{x}\,\mathrm{d}W`, to one path. Look at the
right panel: the intervals should contain 1, and that of a is the widest.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

dt = 0.05


def equation(theta):
    a, b, s = theta.unbind()
    return sdekit.SDE(lambda t, x: a * (b - x), lambda t, x: s * x.clamp_min(1e-6).sqrt())


truth = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
grid = sdekit.uniform(0.0, 60.0, 4800)  # four steps between two observations
x0 = torch.full((1, 1), 1.0, dtype=torch.float64)
solution = sdekit.solve(
    equation(truth), x0, grid, solver=sdekit.SRID2(), noise=sdekit.WhiteNoise(4), save="all"
)
data = solution.xs[::4, 0]  # (1201, 1)


def log_likelihood(log_theta):
    """All pairs of neighbouring observations are a batch of steps."""
    sde = equation(log_theta.exp())
    step = sdekit.Transitions(sde, [0.0, dt], sdekit.EulerMaruyama())
    x = data[:-1]
    return step.log_prob(0, x, [sde.drift(0.0, x)], data[1:]).sum()


log_theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
optimiser = torch.optim.LBFGS([log_theta], line_search_fn="strong_wolfe", max_iter=100)


def closure():
    optimiser.zero_grad()
    loss = -log_likelihood(log_theta)
    loss.backward()
    return loss


optimiser.step(closure)
hessian = torch.autograd.functional.hessian(log_likelihood, log_theta.detach())
error = torch.linalg.inv(-hessian).diag().sqrt()  # of the logarithms
estimate = log_theta.detach().exp()
for name, value, e, true in zip("abs", estimate, error, truth, strict=True):
    print(f"{name} = {value:.3f}, 95 %: {value * (-1.96 * e).exp():.3f} to "
          f"{value * (1.96 * e).exp():.3f}, true {true:g}")  # fmt: skip

fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=[2, 1])
axes[0].plot(solution.ts[::4], data, lw=0.6)
axes[0].set(xlabel="time", ylabel="x", title="the data")
axes[1].errorbar(range(3), estimate / truth, (1.96 * error * estimate / truth).numpy(), fmt="o")
axes[1].axhline(1.0, color="0.6", lw=0.8)
axes[1].set(xticks=range(3), xticklabels=["a", "b", "s"], ylabel="estimate / truth",
            xlim=(-0.5, 2.5), title="95 % intervals")  # fmt: skip

# %%
# Observations far apart
# ----------------------
# The likelihood above is that of Euler's steps, which are biased where the state moves much between
# two observations. Then fit what a solve predicts, such as means and standard deviations at the
# times of the data, by gradients through the solve. Here the data are the statistics of 400 paths
# at three times.

times = [0.5, 1.0, 2.0]
coarse = sdekit.uniform(0.0, 2.0, 20)


def statistics(theta, seed):
    noise = sdekit.WhiteNoise(seed)
    start = torch.full((400, 1), 0.5, dtype=torch.float64)
    xs = sdekit.solve(
        equation(theta), start, coarse, solver=sdekit.Milstein(), noise=noise, save=times
    ).xs
    return torch.cat([xs.mean(dim=1), xs.std(dim=1)])


with torch.no_grad():
    observed = statistics(truth, seed=1)
log_theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
adam = torch.optim.Adam([log_theta], lr=0.1)
for _ in range(50):
    loss = (statistics(log_theta.exp(), seed=2) - observed).square().sum()  # one seed throughout
    adam.zero_grad()
    loss.backward()
    adam.step()
print("a, b, s =", [round(value, 3) for value in log_theta.detach().exp().tolist()])

# %%
# - The same seed in every update makes the loss a smooth function of the parameters; a new seed per
#   update is stochastic gradient descent, and is right for large models.
# - Fit logarithms of what must be positive.
# - Coefficients that are networks: :doc:`/gallery/plot_neural_sde`. Paths observed with noise:
#   :doc:`plot_equation_latent`. Long solves: :doc:`plot_equation_gradient_memory`.
#
# Reference: :class:`sdekit.Transitions`.
