"""The shipped Korean pipeline with the phase in its place, under a name of its own."""

from __future__ import annotations

from attrs import evolve

import mgk
from mgk_drug_safety.phase import PHASE

PIPELINE = evolve(
    mgk.pipeline("korean-medical").with_phases([PHASE]),
    name="korean-medical-safe",
    title="Gemma to Korean medicine, with drug warnings after the dictionary",
)
