"""The reference pipeline: a small network through the three phases of the Korean medical one.

The constants are those of the reference program: learning rates 1e-3, 5e-4 and 3e-4, epochs times
batches 3 x 20, 3 x 20 and 5 x 25, sixteen examples a batch, LoRA of rank 8 and alpha 16 on the first
two layers. Each phase has a teacher and an input distribution of its own, so it learns something
that the others do not, and forgets something of what they taught: plain merging prevents none of
it, and the retention matrix shows it. The gate asks each phase for its own gain only, 30 % of the way
to the best possible loss; on unrelated random targets (``data.type = "noise"``) it refuses.
"""

from __future__ import annotations

from typing import Any

from mgk_core.contract.pipeline import Phase, Pipeline

BATCH = 16


def phase(
    name: str, title: str, *, seed: int, lr: float, epochs: int, batches: int
) -> Phase:
    """Declare one phase of the reference: a teacher of its own, plain SGD."""
    data: dict[str, Any] = {
        "type": "teacher",
        "seed": seed,
        "size": BATCH * batches,
        "probe": name,
    }
    return Phase(
        name=name,
        title=title,
        data=data,
        optimizer={"type": "sgd", "lr": lr},
        train={"epochs": epochs, "batch_size": BATCH},
    )


PIPELINE = Pipeline(
    name="textmodel",
    title="Reference network: plain text, medical dictionary, multiple choice (seconds on a CPU)",
    base={"type": "reference"},
    phases=(
        phase(
            "plain_text", "plain Korean text", seed=11, lr=1e-3, epochs=3, batches=20
        ),
        phase(
            "medical_dictionary",
            "medical dictionary",
            seed=12,
            lr=5e-4,
            epochs=3,
            batches=20,
        ),
        phase(
            "mcq", "multiple-choice questions", seed=13, lr=3e-4, epochs=5, batches=25
        ),
    ),
    run={
        "threads": 1
    },  # products this small gain nothing from a second thread, and wait for it on a busy machine
    defaults={
        "adapter": {
            "type": "lora",
            "rank": 8,
            "alpha": 16,
            "targets": ["layer1", "layer2"],
        },
        "step": {"type": "standard"},
        "merge": {"type": "exact"},
        "gate": {"min-gain": {"to_floor": 0.3}},
    },
)
