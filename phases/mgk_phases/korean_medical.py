"""The main pipeline: a Gemma model to Korean medicine, by plain text, a dictionary, and questions.

The data ships with this package (see its README.md). Nothing selects on test: dev chooses, the rows
of the retention matrix are measured on test.
"""

from __future__ import annotations

from typing import Any

from mgk_core.contract.pipeline import Phase, Pipeline

DATA = "package:mgk_phases/data/korean_medical"


def data(type_: str, folder: str, **options: Any) -> dict[str, Any]:
    """Return a ``data`` table for one of the shipped folders."""
    return {
        "type": type_,
        **{
            split: f"{DATA}/{folder}/{split}.jsonl"
            for split in ("train", "dev", "test")
        },
        **options,
    }


BASE = {
    "base_probes": {
        "base-ko": f"{DATA}/base/probe_ko.jsonl",
        "base-en": f"{DATA}/base/probe_en.jsonl",
    },
    "calibration": (
        f"{DATA}/base/calibration_ko.jsonl",
        f"{DATA}/base/calibration_en.jsonl",
    ),
}
"""What the base knew before: texts that no phase trains on, declared once, by the first phase."""

GENERATED = {"generate": 8, "new_tokens": 12}
"""How much the model writes itself in the first and the last row: an impression, not a measurement."""

PIPELINE = Pipeline(
    name="korean-medical",
    title="Gemma to Korean medicine: plain text, dictionary, five-option questions (minutes on a CPU)",
    base={"type": "hf", "id": "gemma-3-270m-q4"},
    phases=(
        Phase(
            name="plain_text",
            title="plain Korean medical text",
            # Answers end by what the later phases teach; the recorded figures are those of text alone.
            data=data(
                "text", "text", length=128, max_length=128, end_documents=False, **BASE
            ),
            train={"steps": 100, "batch_size": 3},  # the training text once
        ),
        Phase(
            name="dictionary",
            title="medical dictionary",
            data=data("dictionary", "dictionary", **GENERATED),
            train={"steps": 40, "batch_size": 16},
        ),
        Phase(
            name="mcq",
            title="five-option questions",
            data=data("mcq", "mcq", **GENERATED),
            train={"steps": 40, "batch_size": 6},
        ),
    ),
    defaults={
        "adapter": {"type": "lora", "rank": 8, "alpha": 16, "targets": ("all-linear",)},
        "optimizer": {
            "type": "adamw",
            "lr": 5e-4,
            "schedule": "cosine",
            "warmup_steps": 4,
            "clip": 1.0,
        },
        "step": {"type": "standard"},
        "merge": {"type": "exact"},
        # What earlier phases and the base knew is protected while training, and held to at the boundary.
        # 48 eigenvectors: what is kept of three phases is 8 % of the model.
        "retention": {
            "drift-guard": {"strength": 10.0, "sketch": 48, "max_tokens": 1024}
        },
        "gate": {
            "min-gain": {"probes": ("text", "dictionary", "mcq"), "stderrs": 2.0},
            "keep-base": {"share": 0.8},
            "max-drop": {"probes": ("text", "dictionary", "mcq"), "relative": 0.2},
        },
        "recover": {"scale-search": {"scales": (0.7, 0.4)}},
        # A CPU without bf16 products scores about 60 items of each probe in the time that it trains a dozen steps.
        # What the questions gain is small beside what one differs from another, so all 120 of them are asked.
        "evaluate": {"limit": 120, "limits": {"dictionary*": 60, "base-*": 60}},
    },
)
