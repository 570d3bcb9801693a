"""Score-based generative models on top of sdekit: diffusions, score networks, training, sampling, likelihood."""

from sdekit_diffusion import data, metrics, nets
from sdekit_diffusion._adapted import GRIDS, Adapted
from sdekit_diffusion._adaptive import AdaptiveFlow, AdaptiveSDE
from sdekit_diffusion._annealed import AnnealedLangevin
from sdekit_diffusion._batches import AbstractSource
from sdekit_diffusion._between import sample_between
from sdekit_diffusion._bound import VariationalBound, variational_bound
from sdekit_diffusion._check import ModelCheck, check_model
from sdekit_diffusion._checkpoint import CheckpointError, save
from sdekit_diffusion._ddim import DDIM
from sdekit_diffusion._diffusion import VESDE, VPSDE, AbstractDiffusion, SubVPSDE
from sdekit_diffusion._discrete import DDPM, NCSN, cosine_betas, linear_betas
from sdekit_diffusion._edm import EDM
from sdekit_diffusion._empirical import EmpiricalMixture
from sdekit_diffusion._fit import fit, validation_loss
from sdekit_diffusion._grids import (
    AbstractGrid,
    Equidistributed,
    Focused,
    GeometricInSigma,
    Given,
    Karras,
    Native,
    Quadratic,
    UniformInLogSNR,
    UniformInTime,
)
from sdekit_diffusion._latent import decode, encode, interpolate
from sdekit_diffusion._likelihood import BitsPerDim, bits_per_dim, log_likelihood
from sdekit_diffusion._load import load
from sdekit_diffusion._loss import dsm_loss
from sdekit_diffusion._methods import METHODS
from sdekit_diffusion._mixture import GaussianMixture
from sdekit_diffusion._model import AbstractModel, ScoreModel
from sdekit_diffusion._ncsn import NCSNSettings, ncsn_settings, ncsnv2_settings
from sdekit_diffusion._pretrained import from_diffusers, from_edm, from_ncsnv2, from_score_sde
from sdekit_diffusion._recipe import Recipe
from sdekit_diffusion._run import Log
from sdekit_diffusion._sample import sample
from sdekit_diffusion._samplers import AbstractMethod, Descent, InTime, OnClock
from sdekit_diffusion._schedules import DIFFUSIONS, EDMSDE, CosineVPSDE, RectifiedFlow
from sdekit_diffusion._shards import Shards
from sdekit_diffusion._techniques import geometric_sigmas, langevin_step_size, max_pairwise_distance
from sdekit_diffusion._training import Record, Training

__all__ = [
    "DDIM",
    "DDPM",
    "DIFFUSIONS",
    "EDM",
    "EDMSDE",
    "GRIDS",
    "METHODS",
    "NCSN",
    "VESDE",
    "VPSDE",
    "AbstractDiffusion",
    "AbstractGrid",
    "AbstractMethod",
    "AbstractModel",
    "AbstractSource",
    "Adapted",
    "AdaptiveFlow",
    "AdaptiveSDE",
    "AnnealedLangevin",
    "BitsPerDim",
    "CheckpointError",
    "CosineVPSDE",
    "Descent",
    "EmpiricalMixture",
    "Equidistributed",
    "Focused",
    "GaussianMixture",
    "GeometricInSigma",
    "Given",
    "InTime",
    "Karras",
    "Log",
    "ModelCheck",
    "NCSNSettings",
    "Native",
    "OnClock",
    "Quadratic",
    "Recipe",
    "Record",
    "RectifiedFlow",
    "ScoreModel",
    "Shards",
    "SubVPSDE",
    "Training",
    "UniformInLogSNR",
    "UniformInTime",
    "VariationalBound",
    "bits_per_dim",
    "check_model",
    "cosine_betas",
    "data",
    "decode",
    "dsm_loss",
    "encode",
    "fit",
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
    "sample",
    "sample_between",
    "save",
    "validation_loss",
    "variational_bound",
]
