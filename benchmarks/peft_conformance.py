"""PEFT's mergeable tuners, through the bridge, under the conformance tests of adapters.

    python benchmarks/peft_conformance.py [TUNER ...]

Prints, for each test, how many tuners pass it of those it applies to, and each failure with its
detail. Sizes are multiples of 4, because OFT, BOFT and RoAd need them; none is square.

"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch import nn

import mgk
from mgk_core.contract.adapter import Adapter
from mgk_core.testing.adapters import ON_A_MODEL
from mgk_core.testing.laws import LawResult, hold_all
from mgk_core.testing.subject import Subject
from mgk_core.testing.zoo import Case

TUNERS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3, "lora_alpha": 5},
    "OFT": {"r": 0, "oft_block_size": 4},
    "IA3": {},
    "BOFT": {"boft_block_size": 4, "boft_n_butterfly_factor": 1},
    "LOHA": {"r": 3, "alpha": 5},
    "LOKR": {"r": 3, "alpha": 5},
    "VERA": {"r": 5, "save_projection": False},
    "HRA": {"r": 4},
    "SHIRA": {"r": 2},
    "GLORA": {"r": 3},
    "ROAD": {"group_size": 4},
    "VBLORA": {"r": 3, "num_vectors": 32, "vector_length": 4, "topk": 2},
    "FOURIERFT": {"n_frequency": 20, "scaling": 5.0},
    "RANDLORA": {"r": 3, "randlora_alpha": 5},
}


def case() -> Case:
    """Return two linear maps, 12 → 20 → 8, and an output map that no tuner is put on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8), nn.Linear(8, 5)
        )
    model.requires_grad_(requires_grad=False)
    return Case(
        "linear", model.eval(), lambda g, batch: torch.randn(batch, 12, generator=g)
    )


def results(tuner: str) -> list[LawResult]:
    """Run every test on one tuner."""

    def attach(model: nn.Module, name: str) -> Adapter:
        chosen = {"targets": ["0", "2"], "options": TUNERS[tuner]}
        return mgk.attach(model, f"peft:{tuner}", name=name, **chosen)

    attach(
        case().model, "adapter"
    )  # a refusal would count as a test that does not apply
    return hold_all(ON_A_MODEL, Subject(attach, case), tuner)


def main() -> None:
    """Print a line for each test, and one for each failure."""
    torch.set_num_threads(1)
    passed: Counter[str] = Counter()
    applied: Counter[str] = Counter()
    failures = []
    for tuner in sys.argv[1:] or TUNERS:
        for result in results(tuner):
            applied[result.law] += result.ok is not None
            passed[result.law] += result.ok is True
            if result.ok is False:
                failures.append(f"{result.law}: {tuner}: {result.detail}")
    for law, count in applied.items():
        print(f"{law:40} {passed[law]:3} of {count}")
    total, most = passed.total(), applied.total()
    print(f"{'all':40} {total:3} of {most} ({total / most:.1%})")
    for failure in failures:
        print(failure)


if __name__ == "__main__":
    main()
