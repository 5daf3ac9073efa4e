"""The phase: 36 drugs with their warnings are learnt, 18 drugs of the same classes are asked.

It names plugins by type and imports none. What it leaves open (adapter, optimizer, merge rule) comes
from the defaults of the pipeline into which it is inserted.
"""

from __future__ import annotations

from mgk import Phase

DATA = "package:mgk_drug_safety/data"

PHASE = Phase(
    name="drug_safety",
    title="warnings of common drugs",
    after="dictionary",
    data={
        "type": "dictionary",
        **{split: f"{DATA}/{split}.jsonl" for split in ("train", "dev", "test")},
        "directions": ("ko-definition",),
        "probe_direction": "ko-definition",
        "probe": "drug_safety",
        "generate": 0,
    },
    train={"steps": 24, "batch_size": 9},
    # It is worth having only if it teaches something and takes little away: its own probe must gain more than two
    # standard errors, and no earlier probe may lose more than five per cent of its score, noise aside. Otherwise a
    # smaller part of the delta is merged, and if that is refused too, the adapter is kept beside the model.
    gate={
        "min-gain": {"stderrs": 2.0, "probes": ("drug_safety",)},
        "max-drop": {"relative": 0.05},
    },
    recover={"scale-search": {"scales": (0.5, 0.25)}, "keep-apart": {}},
)
