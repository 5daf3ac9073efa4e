"""mgk bench adapters: sizes that train the same number of parameters, paired errors, the command."""

import json
import math

import pytest
from attrs import evolve
from click.testing import CliRunner

import mgk
from mgk_bench import adapters, digits
from mgk_bench.cell import Cell
from mgk_bench.command import bench
from mgk_core.contract.errors import InputError

pytest.importorskip("sklearn")

LORA = adapters.Kind("lora", "", {"type": "lora", "targets": ["all-linear"]})


def short(seed):
    """Two tasks of the split suite, one epoch."""
    suite = digits.suite("split", seed)
    recipe = evolve(suite.settings["recipe"], epochs=1.0, base_epochs=1.0)
    return evolve(
        suite, tasks=suite.tasks[:2], settings=suite.settings | {"recipe": recipe}
    )


def counted(suite, table):
    """How many numbers an adapter trains, by its own parameters."""
    options = dict(table)
    found = mgk.attach(suite.build(0).model, options.pop("type"), **options)
    return sum(p.numel() for p in found.parameters())


def test_the_size_is_the_nearest_to_the_budget():
    """No other rank of the kind trains a number of parameters closer to the budget."""
    suite = short(0)
    one_layer = adapters.Kind("one", "", {"type": "lora", "targets": ["2"]})
    for kind, budget in ((LORA, 9_000), (one_layer, 9_000), (LORA, 1)):
        found = adapters.sized(suite, kind, budget)
        assert found.parameters == counted(suite, found.method.adapter)
        ranks = [counted(suite, kind.sized(r)) for r in adapters.SIZES]
        assert abs(found.parameters - budget) == min(abs(n - budget) for n in ranks)


def test_peft_sizes_go_into_its_options():
    """PEFT's own field is set, beside the kind's other options."""
    (kind,) = [k for k in adapters.KINDS if k.name == "peft:OFT"]
    options = kind.sized(16)["options"]
    assert options == {"r": 0, "oft_block_size": 16}


def made(name, seed, last):
    """A cell that ends at this score on both tasks."""
    rows = ((90.0, 50.0), (last, last))
    return Cell(name, "s", seed, rows, (0, 1), 2.0 if name == "lora" else 3.0, 0)


def test_differences_are_paired_by_seed():
    """The error is that of the seeds' differences, not of two means that share the seeds' own spread."""
    dora = evolve(LORA, name="dora")
    rows = [adapters.Sized(adapters.REFERENCE, 8, 10), adapters.Sized(dora, 8, 12)]
    ends = {0: (60.0, 61.0), 1: (80.0, 82.0), 2: (70.0, 73.0)}
    cells = [made("lora", s, a) for s, (a, _) in ends.items()]
    cells += [made("dora", s, b) for s, (_, b) in ends.items()]
    lora, other = adapters.lines(rows, cells)
    assert lora.against is None
    value, error = other.against
    assert value == pytest.approx(2.0)
    assert error == pytest.approx(math.sqrt(1 / 3))
    assert error < other.error["AP"] / 5
    assert other.cpu == pytest.approx(1.5)
    assert "+2.000 ± 0.577" in adapters.as_text([lora, other])


def test_a_run_gives_a_cell_for_each_kind_and_seed():
    """All kinds of a seed start from one base; the records name the adapter's table."""
    dora = adapters.Kind("dora", "", {"type": "dora", "targets": ["all-linear"]})
    reference = evolve(LORA, name=adapters.REFERENCE.name)
    told = []
    original, adapters.REFERENCE = adapters.REFERENCE, reference
    try:
        rows, cells = adapters.run(short, [reference, dora], [0, 1], told.append)
    finally:
        adapters.REFERENCE = original
    assert [(c.method, c.seed) for c in cells] == [
        ("lora", 0), ("dora", 0), ("lora", 1), ("dora", 1),
    ]  # fmt: skip
    assert cells[0].rows[0] == cells[1].rows[0]
    assert len(told) == 4
    first = json.loads(adapters.records(rows, cells)[1])
    assert first["adapter"]["type"] == "dora"
    assert first["trained"] == rows[1].parameters


def test_an_unknown_adapter_is_named():
    """The nearest known name is offered; exit code 2."""
    with pytest.raises(InputError, match="did you mean 'dora'"):
        adapters.chosen(("doro",))
    result = CliRunner().invoke(bench, ["adapters", "--adapter", "doro"])
    assert isinstance(result.exception, InputError)
