"""How far three ways of adding up the gradients of ranks are from one process.

    torchrun --standalone --nproc-per-node 4 benchmarks/ranks_sum.py

Prints ‖ΔW − ΔW₁‖ / ‖ΔW₁‖ after 30 steps, where ΔW₁ is the delta that one process trains.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/distributed"))

from reductions import measured

from mgk_core.run.join import joined

with joined() as world:
    found = measured(world)
    if world.leader:
        print(json.dumps({"ranks": world.size} | found, indent=1))
