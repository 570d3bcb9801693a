"""Score-based generative models: diffusions, networks, training, sampling, likelihood.

The examples in the docstrings assume `import torch, sdekit` and `import sdekit_diffusion as sd`.

Example:
    >>> "vp" in sd.DIFFUSIONS, "default" in sd.METHODS, "karras" in sd.GRIDS  # names for `sample`
    (True, True, True)
    >>> "jacobian" in sd.COVARIANCES, "particles" in sd.POSTERIOR_METHODS  # for `sample_posterior`
    (True, True)
    >>> "min_snr" in sd.WEIGHTS, "log_normal" in sd.DENSITIES  # names for `Recipe`
    (True, True)
    >>> model = sd.GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.1])
    >>> sd.sample(model, 4, sde="vp", method="default", grid="karras", seed=0).shape
    torch.Size([4, 1])
"""

import sdekit_diffusion._training.interrupt as _interrupt  # first: torch takes long to import
from sdekit_diffusion import data, metrics, nets
from sdekit_diffusion._diffusions import names as _names
from sdekit_diffusion._diffusions.ddpm import cosine_betas, linear_betas
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import *  # noqa: F403
from sdekit_diffusion._inference.bits_per_dim import BitsPerDim, bits_per_dim
from sdekit_diffusion._inference.bound import VariationalBound, variational_bound
from sdekit_diffusion._inference.classification import Classification, classify
from sdekit_diffusion._inference.encoding import decode, encode, interpolate
from sdekit_diffusion._inference.likelihood import log_likelihood
from sdekit_diffusion._inference.sample_posterior import bayes_factor, sample_posterior
from sdekit_diffusion._inference.weighted import WeightedSamples
from sdekit_diffusion._inference.weighting import (
    POSTERIOR_METHODS,
    AbstractWeighting,
    FlowWeights,
    Particles,
    PosteriorProblem,
)
from sdekit_diffusion._loading import from_diffusers, from_edm, from_ncsnv2, from_score_sde
from sdekit_diffusion._loading.load import load
from sdekit_diffusion._models.check import ModelCheck, check_model
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._models.conditioned import DPS, AbstractPosterior, Laplace, MomentMatched
from sdekit_diffusion._models.covariances import (
    COVARIANCES,
    AbstractCovariance,
    Conditioned,
    DataCovariance,
    DiagonalCovariance,
    IsotropicCovariance,
    JacobianCovariance,
)
from sdekit_diffusion._models.derived import AbstractDerivedModel, per_sample
from sdekit_diffusion._models.empirical import EmpiricalMixture
from sdekit_diffusion._models.guidance import ClassifierGuided, Guided
from sdekit_diffusion._models.inpainting import Inpainted
from sdekit_diffusion._models.joint import Joint
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.mixture import GaussianMixture
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._models.observation import AbstractObservation, Observation
from sdekit_diffusion._models.operators import (
    AbstractOperator,
    Blur,
    Downsampling,
    FourierSampling,
    LinearMap,
    Mask,
    Matrix,
    Radon,
)
from sdekit_diffusion._models.save import save
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling import grids as _grids
from sdekit_diffusion._sampling import methods as _methods
from sdekit_diffusion._sampling.arguments import SampleOptions, StepperOptions
from sdekit_diffusion._sampling.between import sample_between
from sdekit_diffusion._sampling.fit_sampler import fit_sampler
from sdekit_diffusion._sampling.fitted_grid import fitted_grid
from sdekit_diffusion._sampling.grids import *  # noqa: F403
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem
from sdekit_diffusion._sampling.methods import *  # noqa: F403
from sdekit_diffusion._sampling.ncsn_settings import NCSNSettings, ncsn_settings, ncsnv2_settings
from sdekit_diffusion._sampling.noised import Noised
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion._sampling.stepper import Stepper, stepper
from sdekit_diffusion._sampling.techniques import (
    geometric_sigmas,
    langevin_step_size,
    max_pairwise_distance,
)
from sdekit_diffusion._sampling.trajectories import Trajectories, trajectories
from sdekit_diffusion._storage.shards import Shards
from sdekit_diffusion._training import densities as _densities
from sdekit_diffusion._training import loss_weights as _weights
from sdekit_diffusion._training.densities import *  # noqa: F403
from sdekit_diffusion._training.fit import fit, validation_loss
from sdekit_diffusion._training.log import Log
from sdekit_diffusion._training.loop import Record, Training
from sdekit_diffusion._training.loss import dsm_loss
from sdekit_diffusion._training.loss_weights import *  # noqa: F403
from sdekit_diffusion._training.recipe import Recipe
from sdekit_diffusion.data._batches import AbstractSource, Batch

del _interrupt

__all__ = [
    "COVARIANCES",
    "DPS",
    "POSTERIOR_METHODS",
    "AbstractCovariance",
    "AbstractDerivedModel",
    "AbstractDiffusion",
    "AbstractMethod",
    "AbstractModel",
    "AbstractObservation",
    "AbstractOperator",
    "AbstractPosterior",
    "AbstractSource",
    "AbstractWeighting",
    "Batch",
    "BitsPerDim",
    "Blur",
    "CheckpointError",
    "Classification",
    "ClassifierGuided",
    "Conditioned",
    "DataCovariance",
    "DiagonalCovariance",
    "Downsampling",
    "EmpiricalMixture",
    "FlowWeights",
    "FourierSampling",
    "GaussianMixture",
    "Guided",
    "Inpainted",
    "IsotropicCovariance",
    "JacobianCovariance",
    "Joint",
    "Laplace",
    "LinearMap",
    "LinearObservation",
    "Log",
    "Mask",
    "Matrix",
    "ModelCheck",
    "MomentMatched",
    "NCSNSettings",
    "Noised",
    "Observation",
    "Particles",
    "PosteriorProblem",
    "Radon",
    "Recipe",
    "Record",
    "ReverseProblem",
    "SampleOptions",
    "ScoreModel",
    "Shards",
    "Stepper",
    "StepperOptions",
    "Training",
    "Trajectories",
    "VariationalBound",
    "WeightedSamples",
    "bayes_factor",
    "bits_per_dim",
    "check_model",
    "classify",
    "cosine_betas",
    "data",
    "decode",
    "dsm_loss",
    "encode",
    "fit",
    "fit_sampler",
    "fitted_grid",
    "from_diffusers",
    "from_edm",
    "from_ncsnv2",
    "from_score_sde",
    "geometric_sigmas",
    "interpolate",
    "langevin_step_size",
    "linear_betas",
    "load",
    "log_likelihood",
    "max_pairwise_distance",
    "metrics",
    "ncsn_settings",
    "ncsnv2_settings",
    "nets",
    "noise_scale",
    "per_sample",
    "sample",
    "sample_between",
    "sample_posterior",
    "save",
    "signal_scale",
    "stepper",
    "trajectories",
    "validation_loss",
    "variational_bound",
]
__all__ += _names.__all__
__all__ += _grids.__all__
__all__ += _methods.__all__
__all__ += _densities.__all__
__all__ += _weights.__all__
