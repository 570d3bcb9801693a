"""Both packages at work, as they are installed: every part once, a few seconds in all.

`python -W error tests/smoke.py`; `tests/release.py` runs it in fresh environments, and
`tests/test_release.py` on an unpacked wheel.
"""

import tempfile
import warnings

import torch

import sdekit
import sdekit_diffusion as sd


def equation() -> None:
    """A stochastic equation on a grid, and an ordinary one with adaptive steps."""
    gbm = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, noise_type="diagonal")
    x0 = torch.ones(8, 1)
    path = sdekit.BrownianPath(seed=0)
    grid = sdekit.uniform(0.0, 1.0, 16)
    x = sdekit.solve(gbm, x0, grid, solver=sdekit.SRID2(), noise=path).x
    assert x.shape == (8, 1)
    ys = sdekit.odeint(lambda t, y: -y, torch.ones(2), torch.linspace(0.0, 1.0, 3))
    assert torch.allclose(ys[-1], torch.full((2,), -1.0).exp(), atol=1e-4)


def model() -> None:
    """Training, samples, likelihoods, and a checkpoint."""
    law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
    net = sd.nets.MLP(shape=(2,), width=16)
    found = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
    sd.fit(found, law.sample(256, seed=0), sd.Recipe(steps=20), progress=False)
    x = sd.sample(found, 8, seed=0, steps=10)
    assert sd.log_likelihood(found, x).value.isfinite().all()
    with tempfile.TemporaryDirectory() as folder:
        sd.save(found, f"{folder}/model")
        assert torch.equal(sd.sample(sd.load(f"{folder}/model"), 8, seed=0, steps=10), x)


if __name__ == "__main__":
    warnings.simplefilter("error")
    equation()
    model()
    print(f"sdekit {sdekit.__version__} in {sdekit.__path__[0]}")  # noqa: T201
