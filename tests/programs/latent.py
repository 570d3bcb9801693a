"""A program written for torchsde: a latent SDE, an encoder into its initial state and a decoder out
of its path.
"""

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torchsde import sdeint


class LatentSDE(nn.Module):
    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, data=1, latent=2, context=4, hidden=16):
        super().__init__()
        self.encoder = nn.GRU(data, hidden, batch_first=True)
        self.initial = nn.Linear(hidden, 2 * latent)
        self.to_context = nn.Linear(hidden, context)
        self.posterior = nn.Sequential(
            nn.Linear(latent + context, hidden), nn.Softplus(), nn.Linear(hidden, latent)
        )
        self.prior = nn.Sequential(
            nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, latent)
        )
        self.volatility = nn.Sequential(
            nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, latent), nn.Sigmoid()
        )
        self.decoder = nn.Linear(latent, data)
        self.context = None

    def encode(self, xs):
        """The distribution of the initial state; xs is (batch, times, data)."""
        _, hidden = self.encoder(xs)
        self.context = self.to_context(hidden[0])
        mean, log_std = self.initial(hidden[0]).chunk(2, dim=1)
        return Normal(mean, log_std.exp())

    def f(self, t, z):
        return self.posterior(torch.cat([z, self.context], dim=1))

    def h(self, t, z):
        return self.prior(z)

    def g(self, t, z):
        return 0.1 + self.volatility(z)


def data(batch=32, times=9):
    torch.manual_seed(0)
    ts = torch.linspace(0, 1, times)
    phase = torch.rand(batch, 1, 1)
    return ts, torch.sin(4 * (ts.reshape(1, -1, 1) + phase))


def elbo(model, ts, xs, z0=None, bm=None):
    """The evidence lower bound: likelihood, less the divergence at the start, less that along the
    path.
    """
    q0 = model.encode(xs)
    z0 = q0.rsample() if z0 is None else z0
    zs, log_ratio = sdeint(model, z0, ts, bm=bm, dt=1 / 32, method="euler", logqp=True)
    likelihood = Normal(model.decoder(zs), 0.2).log_prob(xs.transpose(0, 1)).sum(dim=(0, 2)).mean()
    prior = kl_divergence(q0, Normal(torch.zeros_like(z0), 1.0)).sum(dim=1).mean()
    return likelihood - prior - log_ratio.sum(dim=0).mean()


def reconstruct(model, ts, xs, z0=None, bm=None):
    """Paths of the posterior, decoded, without the divergence."""
    q0 = model.encode(xs)
    z0 = q0.rsample() if z0 is None else z0
    return model.decoder(sdeint(model, z0, ts, bm=bm, dt=1 / 32, method="euler"))


def train(iterations=30):
    """The trained model and the bound after each iteration."""
    ts, xs = data()
    model = LatentSDE()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    bounds = []
    for _ in range(iterations):
        optimizer.zero_grad()
        bound = elbo(model, ts, xs)
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    return model, bounds
