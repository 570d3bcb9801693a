r"""
How do I train a latent SDE with the KL divergence of paths?
============================================================

The posterior of a path given noisy data is an equation with the noise of the prior and another
drift, :math:`f + g u(t, x)`. Train the network u on the evidence lower bound,
:math:`\mathrm{E}[\log p(y \mid x) + \log w]`, where :func:`sdekit.path_weights` solves the
posterior and returns log w, whose mean is minus the Kullback-Leibler divergence from the prior. For
the linear prior of this example the exact posterior is known. Look for the bound: it rises, and
levels off when the network is trained.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from torch import nn

torch.manual_seed(0)
times = torch.tensor([0.6, 1.0, 1.6, 2.4])
y = torch.tensor([0.8, 1.0, -0.3, -0.6])
error = 0.4  # the standard deviation of the data
net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))


def with_control(t, x):
    """The network receives x, the time until the next datum, and how fast x has to move there."""
    i = torch.searchsorted(times, t, right=True)
    left = (times[i] - t).expand_as(x)
    return -x + net(torch.cat([x, left, (y[i] - x) / (left + error**2)], dim=1))


prior = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
posterior = sdekit.SDE(with_control, lambda t, x: 1.0, "additive")
ends = [0.0, *times.tolist()]


def bound(batch, seed):
    """The bound of each sample, and the states at the times of the data."""
    x = torch.zeros(batch, 1)
    total = torch.zeros(batch)
    xs = []
    for i in range(len(y)):
        grid = sdekit.uniform(ends[i], ends[i + 1], 6)
        noise = sdekit.WhiteNoise(1000 * seed + i)  # other noise in each interval
        x, log_w = sdekit.path_weights(
            prior, posterior, x, grid, solver=sdekit.EulerMaruyama(), noise=noise
        )
        total = total + log_w + torch.distributions.Normal(x[:, 0], error).log_prob(y[i])
        xs.append(x)
    return total, torch.stack(xs)


optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
history = []
for step in range(100):
    loss = -bound(128, step)[0].mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    history.append(-float(loss.detach()))

fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(history, lw=0.8)
ax.set(xlabel="update", ylabel="bound, in nats", ylim=(-15, 0))

# %%
# Compared with the exact posterior
# ---------------------------------
# The prior is a Gaussian process with the covariance :math:`(e^{-|s - t|} - e^{-s - t}) / 2`, so
# that evidence and posterior have closed forms. The bound is below log p(y), by the divergence of
# the trained posterior from the exact one. Look for means and standard deviations near the exact
# ones.

s = times[:, None]
t = times[None]
covariance = 0.5 * (torch.exp(-(s - t).abs()) - torch.exp(-s - t))
noisy = covariance + error**2 * torch.eye(len(y))
evidence = torch.distributions.MultivariateNormal(torch.zeros(len(y)), noisy).log_prob(y)
gain = torch.linalg.solve(noisy, covariance)
mean = y @ gain
std = (covariance - covariance @ gain).diagonal().sqrt()
with torch.no_grad():
    total, xs = bound(4000, 1000)
print(f"bound {total.mean():.3f}, log p(y) {evidence:.3f}")

# The mean of the weights is p(y) for any u, up to the error of the steps.
estimate = total.logsumexp(dim=0) - torch.log(torch.tensor(4000.0))
print(f"log of the mean weight {estimate:.3f}")

fig, ax = plt.subplots(figsize=(5, 3))
ax.errorbar(times - 0.02, xs.mean(dim=1)[:, 0], xs.std(dim=1)[:, 0], fmt="o", label="trained")
ax.errorbar(times + 0.02, mean, std, fmt="s", label="exact posterior")
ax.plot(times, y, "kx", label="data")
ax.set(xlabel="time", ylabel="x", title="bars: one standard deviation")
ax.legend()

# %%
# - The prior may have parameters too: the bound has gradients with respect to all networks.
# - Prior and posterior must share g; a difference is refused.
# - :func:`sdekit.path_kl` is the divergence alone, with less variance than the mean of log w. In
#   the bound of a posterior that is almost exact, log w and the likelihood cancel each other's
#   variance.
# - Models written for torchsde, with ``f``, ``g``, ``h`` and ``logqp=True``, run with
#   :func:`sdekit.sdeint`: :doc:`plot_equation_migrate`.
# - Long solves: :doc:`plot_equation_gradient_memory`.
#
# Reference: :func:`sdekit.path_weights`, :class:`sdekit.PathWeights`.
