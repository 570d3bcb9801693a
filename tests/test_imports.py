"""The walls: who may import whom, and the lists of public names."""

import ast
from pathlib import Path

import pytest

import sdekit
import sdekit_diffusion
from sdekit_diffusion import data, metrics

ROOT = Path(__file__).parent.parent

# Floor by floor, lowest first; a module imports from lower floors only. docs/architecture.md draws the same picture.
SDEKIT = [
    {"elementary", "calling", "_random", "_grid", "_quadrature", "_names"},
    {"_noise", "_sde", "_divergence"},
    {"_clocked", "_reverse", "_semilinear", "_brownian"},
    {"_solver._contract"},
    {"_solver._planned"},
    {"_solver._euler", "_solver._heun", "_solver._runge_kutta", "_solver._multistep", "_solver._predictor_corrector"}
    | {"_solver._milstein", "_solver._exponential", "_solver._stochastic_runge_kutta"}
    | {"_solver._single", "_solver._predictors"},
    {"_solver._dopri8", "_solver._published"},
    {"_solver"},
    {"_solution", "_control", "_steps"},
    {"_gradient"},
    {"_working"},
    {"_adaptive"},
    {"_integrate"},
    {"_likelihood"},
    {"interop._from_torchsde", "interop._to_torchsde", "interop._brownian"},
    {"interop._torchsde_noise", "interop._torchdiffeq"},
    {"interop._steps"},
    {"interop._sdeint", "interop._odeint"},
    {"interop._odeint_adjoint"},
    {"interop"},
    {""},
]
DIFFUSION = [
    {"nets._embedding", "_batches", "_counters", "_decoder", "_distributed", "_files", "_inputs", "_interrupt", "_bounded"}
    | {"data._files", "data._scale", "data._toys", "metrics._points", "_wrapped"},
    {"nets._mlp", "nets._refinenet", "nets._unet"}
    | {"metrics._distances", "metrics._features", "metrics._floor", "metrics._images", "metrics._inception", "metrics._modes"}
    | {"metrics._neighbours", "data._dataset", "data._stream"},
    {"nets", "metrics", "data._stored"},
    {"data._images"},
    {"data._huggingface"},
    {"data._load"},
    {"data", "_shards"},
    {"_diffusion"},
    {"_discrete"},
    {"_schedules"},
    {"_model"},
    {"_evaluating", "_mixture", "_flow", "_loss", "_grids", "_techniques"},
    {"_check"},
    {"_clock"},
    {"_samplers", "_empirical", "_recipe", "_checkpoint", "_refined"},
    {"_adapted", "_adaptive", "_annealed", "_ddim", "_edm", "_history", "_training"} | {"_pretrained._weights"},
    {"_methods", "_ncsn", "_run", "_pretrained._denoiser", "_pretrained._folder", "_pretrained._score_sde"}
    | {"_pretrained._refinenet"},
    {"_clear", "_sample", "_fit", "_pretrained._diffusers", "_pretrained._ncsnv2"},
    {"_likelihood", "_bound", "_between", "_named"},
    {"_latent", "_load", "_pretrained"},
    {""},
    {"_evaluation", "_options"},
    {"_figures"},
    {"report", "_outputs", "_watch"},
    {"__main__"},
]


def modules(package):
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize(("package", "floors"), [("sdekit", SDEKIT), ("sdekit_diffusion", DIFFUSION)])
def test_imports_go_down(package, floors):
    height = {name: i for i, floor in enumerate(floors) for name in floor}
    found = dict(modules(package))
    assert set(found) == set(height)
    for name, path in found.items():
        for module, member in imported(path):
            if module != package and not module.startswith(package + "."):
                continue
            target = module.removeprefix(package).removeprefix(".")
            inner = f"{target}.{member}".removeprefix(".")
            target = inner if inner in height else target
            assert height[target] < height[name], f"{package}.{name} imports {package}.{target}, which is not below it"


def test_the_numerical_library_knows_nothing_of_its_client():
    for _, path in modules("sdekit"):
        assert not any(module.startswith("sdekit_diffusion") for module, _ in imported(path)), path


def test_the_client_uses_public_names_only():
    for _, path in modules("sdekit_diffusion"):
        for module, member in imported(path):
            if module == "sdekit":
                assert member is None or member in sdekit.__all__, f"{path}: sdekit.{member}"
            elif module.startswith("sdekit."):
                assert module in ("sdekit.elementary", "sdekit.calling"), f"{path}: {module}"


def test_networks_import_torch_only():
    for name, path in modules("sdekit_diffusion"):
        if name.startswith("nets"):
            for module, _ in imported(path):
                assert module.split(".")[0] in {
                    "torch",
                    "math",
                    "collections",
                    "typing",
                    "dataclasses",
                    "abc",
                } or module.startswith("sdekit_diffusion.nets"), f"{path}: {module}"


def test_public_names_of_sdekit():
    assert (
        sdekit.__all__
        == """
        DEIS ODE RK4 SDE SEA SRA1 SRA3 SRID2 AbstractClocked AbstractCorrector AbstractEmbeddedRungeKutta AbstractGradient
        AbstractMultistep AbstractNoise AbstractPredictor AbstractRungeKutta AbstractSDE AbstractSingleStep AbstractSolver
        AbstractStochasticRungeKutta AbstractTrace AdamsBashforth AdamsMoulton Ancestral AngleClocked Bosh3 BrownianPath
        Checkpointed Clocked ClockedHeun DPMSolver DPMSolverSingle Dopri5 Dopri8 EulerHeun EulerMaruyama Exact
        ExponentialEuler ExponentialHeun Heun Hutchinson Increment Langevin Likelihood Midpoint Milstein NotFiniteError Order
        PIDController PiecewiseClocked Point PredictorCorrector ProbabilityFlow ReverseDiffusion ReverseSDE Reversible
        ReversibleHeun SPaRK SemiLinear ShARK SlowRK Solution Stage Status Step StochasticTableau Tableau Tsit5
        UnfinishedError UniPC WhiteNoise did_you_mean elementary fresh_seed geometric integrate interop log_likelihood normal
        odeint odeint_adjoint odeint_event sdeint solve uniform uniform01
    """.split()
    )
    assert all(hasattr(sdekit, name) for name in sdekit.__all__)


def test_public_names_of_sdekit_diffusion():
    assert (
        sdekit_diffusion.__all__
        == """
        DDIM DDPM DIFFUSIONS EDM EDMSDE GRIDS METHODS NCSN VESDE VPSDE AbstractDiffusion AbstractGrid AbstractMethod
        AbstractModel AbstractSource Adapted AdaptiveFlow AdaptiveSDE AnnealedLangevin BitsPerDim CheckpointError CosineVPSDE
        Descent EmpiricalMixture Equidistributed Focused GaussianMixture GeometricInSigma Given InTime Karras Log ModelCheck
        NCSNSettings Native OnClock Quadratic Recipe Record RectifiedFlow ScoreModel Shards SubVPSDE Training UniformInLogSNR
        UniformInTime VariationalBound bits_per_dim check_model cosine_betas data decode dsm_loss encode fit from_diffusers
        from_edm from_ncsnv2 from_score_sde geometric_sigmas interpolate langevin_step_size linear_betas load log_likelihood
        max_pairwise_distance metrics ncsn_settings ncsnv2_settings nets sample sample_between save validation_loss
        variational_bound
    """.split()
    )
    assert all(hasattr(sdekit_diffusion, name) for name in sdekit_diffusion.__all__)


def test_public_names_of_metrics():
    assert (
        metrics.__all__
        == """
        ClassifierFeatures Floor ImageFeatures InceptionScores Modes PrecisionRecall classifier_features energy_distance frechet
        image_features inception_scores mmd modes nearest precision_recall sampling_floor sliced_wasserstein
    """.split()
    )


def test_public_names_of_data():
    assert data.__all__ == ["Dataset", "Scale", "from_datasets", "load", "sources"]


def test_data_needs_no_extra():
    """Libraries that read files of others are imported within functions."""
    for name, path in modules("sdekit_diffusion"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", None) for node in top}
        roots = {str(found).split(".")[0] for found in names}
        assert not name.startswith("data") or roots.isdisjoint({"datasets", "fsspec", "mlxtend", "PIL", "sklearn"}), path


@pytest.mark.parametrize("package", [sdekit, sdekit_diffusion, metrics, data])
def test_everything_public_is_documented(package):
    for name in package.__all__:
        item = getattr(package, name)
        assert name in ("DIFFUSIONS", "GRIDS", "METHODS") or (item.__doc__ and not item.__doc__.startswith(f"{name}(")), name


def test_both_packages_are_typed():
    assert (ROOT / "sdekit" / "py.typed").exists()
    assert (ROOT / "sdekit_diffusion" / "py.typed").exists()
