"""Settings of the whole suite: hypothesis profiles and one thread, so that bits do not depend on the machine's load."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]

settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("thorough", max_examples=250, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("MGK_HYPOTHESIS", "fast"))

torch.set_num_threads(1)
