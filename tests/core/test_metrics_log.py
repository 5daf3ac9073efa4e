"""metrics.jsonl: whole up to each mark, cut back to it, valid JSON whatever the numbers."""

from __future__ import annotations

import errno
import json
import math
import os

import pytest

from mgk_core.contract.errors import StoreError
from mgk_core.record.disk import Disk
from mgk_core.record.metrics_log import Mark, MetricsLog, digest_of
from mgk_core.record.run_directory import METRICS
from mgk_core.record.store import Store


def test_a_mark_holds_length_and_digest(tmp_path):
    """What was written up to a mark is what its digest says, also after a cut and after going on."""
    store = Store(tmp_path)
    log = MetricsLog(store)
    assert log.sync() == Mark()
    log.write({"event": "step", "loss": 1.0})
    first = log.sync()
    log.write({"event": "step", "loss": 2.0})
    log.close()
    path = tmp_path / METRICS
    assert digest_of(path, first.length) == first.digest
    again = MetricsLog(store, first.length)
    again.write({"event": "step", "loss": 2.0})
    second = again.sync()
    again.close()
    assert digest_of(path, second.length) == second.digest
    assert [json.loads(x)["loss"] for x in path.read_text().splitlines()] == [1.0, 2.0]
    assert digest_of(path, second.length + 5) == "cut short by 5 bytes"
    assert digest_of(tmp_path / "none", 3) == "cut short by 3 bytes"


def test_numbers_that_json_lacks(tmp_path):
    """Every line is valid JSON; float() reads NaN and inf back."""
    log = MetricsLog(Store(tmp_path))
    log.write({"a": math.nan, "b": [math.inf], "c": {"d": -math.inf}})
    log.close()
    line = json.loads((tmp_path / METRICS).read_text(), parse_constant=pytest.fail)
    assert math.isnan(float(line["a"]))
    assert (float(line["b"][0]), float(line["c"]["d"])) == (math.inf, -math.inf)


def test_a_full_disk_is_told(tmp_path):
    """A failed flush names the file and the mend."""

    class Full(Disk):
        def sync(self, path):
            if path.name == METRICS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = MetricsLog(Store(tmp_path, Full()))
    log.write({"a": 1})
    with pytest.raises(
        StoreError, match=rf"{METRICS}: cannot be written: .*free some space"
    ):
        log.close()
