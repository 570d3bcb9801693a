"""Tests run on one thread each; pytest-xdist gives every core a process of its own."""

import torch

torch.set_num_threads(1)
