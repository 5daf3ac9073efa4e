"""What methods are compared with: the data ``mixed``."""

import pytest
import torch

from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.errors import ConfigError
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_retention import mixed
from mgk_retention.mixed import MixedRows
from mgk_retention.specs import MixedSpec


def test_a_mixed_row_is_a_whole_batch(small):
    """Row after row: the batches of the first part, in its own size, then those of the second; each example once an epoch."""
    one, two = small.rows(6, seed=1), small.rows(4, seed=2)
    bundle = small.Bundle(small.network())
    rows = MixedRows(bundle, {"one": (one, 3, 2), "two": (two, 2, 4)})
    assert len(rows) == 6
    first = torch.cat([rows.batch([0]).inputs, rows.batch([1]).inputs])
    assert sorted(first.tolist()) == sorted(one.inputs.tolist())
    assert [len(rows.batch([i]).inputs) for i in range(6)] == [3, 3, 2, 2, 2, 2]
    both = rows.batch([0, 4])
    assert torch.equal(
        both.inputs, torch.cat([rows.batch([0]).inputs, rows.batch([4]).inputs])
    )


def test_a_mixed_digest_knows_its_parts(small):
    """Other sizes or counts are other data, for a run that goes on."""
    bundle, data = small.Bundle(small.network()), small.rows(6)
    digests = {
        MixedRows(bundle, {"one": (data, size, n)}).digest
        for size, n in ((3, 2), (2, 2), (3, 4))
    }
    assert len(digests) == 3


def test_mixed_loads_each_part_by_its_plugin(monkeypatch, hooks, small):
    """Probes, dev and calibration of all parts; one verification batch of each; notes say whose they are."""
    parts = {}

    class Fake:
        spec = hooks.spec

        def load_data(self, spec, bundle):
            parts[spec.type] = PhaseData(
                train=small.rows(6),
                dev=(spec.type,),
                verify=("v1", "v2"),
                calibration=(spec.type,),
                notes=("read",),
            )
            return parts[spec.type]

    monkeypatch.setattr(mixed, "peers", Fake)
    tables = {
        name: {"data": {"type": name}, "batch_size": 2, "batches": 3}
        for name in ("text", "dictionary")
    }
    found = mixed.load(
        MixedSpec(type="mixed", parts=tables), small.Bundle(small.network())
    )
    assert len(found.train) == 6
    assert found.dev == found.calibration == ("text", "dictionary")
    assert found.verify == ("v1", "v1")
    assert found.notes == ("text: read", "dictionary: read")


def test_mixed_reaches_no_plugin_that_its_run_leaves_out(small):
    """A part whose plugin takes no part in the run is an error, installed or not."""
    part = {"data": {"type": "noise"}, "batch_size": 2, "batches": 3}
    hooks = Hooks(load_plugins(without=["textmodel"]))
    with pytest.raises(ConfigError, match="'noise'"):
        hooks.load_data(
            MixedSpec(type="mixed", parts={"one": part}), small.Bundle(small.network())
        )


@pytest.mark.parametrize(
    "part",
    [
        {"data": {}, "batch_size": 2},
        {"data": {}, "batch_size": 0, "batches": 1},
        {"batch_size": 1, "batches": 1},
    ],
)
def test_a_part_says_all_that_it_needs(hooks, part):
    """A part without data, size or count is an error that names it."""
    from mgk_core.config.resolve import structure_spec

    with pytest.raises(ConfigError, match=r"parts\.one"):
        structure_spec(
            hooks.plugins.registry, "data", {"type": "mixed", "parts": {"one": part}}
        )
