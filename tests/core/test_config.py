"""Configuration: layers over each other, every problem at once, with its place."""

import pytest
from attrs import frozen

from mgk_core.config.render import to_toml
from mgk_core.config.resolve import load_tree, resolve
from mgk_core.config.tree import line_of, parse_set
from mgk_core.contract.errors import ConfigError, InputError
from mgk_core.contract.pipeline import Phase, Pipeline
from mgk_core.contract.specs import (
    LossSpec,
    Spec,
    SpecRegistry,
    above,
    at_least,
    option,
)
from mgk_core.host.manager import load_plugins


@frozen(kw_only=True)
class Low(Spec):
    """An adapter."""

    rank: int = option(8, at_least(1))
    alpha: float = option(16.0, above(0))
    targets: tuple[str, ...] = option(("a",))
    pattern: dict[str, int] = option({})


@frozen(kw_only=True)
class Other(Spec):
    """Another adapter with keys of its own."""

    vectors: int = option(3)


@frozen(kw_only=True)
class Plain(Spec):
    """Anything."""

    lr: float = option(0.1)
    name: str | None = option(None)


@pytest.fixture
def registry():
    found = SpecRegistry()
    found.plugin = "test"
    found.add("adapter", "low", Low)
    found.add("adapter", "other", Other)
    for slot in ("base", "data", "optimizer", "retention", "gate"):
        found.add(slot, "plain", Plain)
    found.add("step", "standard", Plain)
    found.add("merge", "exact", Plain)
    found.add("loss", "likelihood", LossSpec)
    return found


def phase(name, **more):
    return Phase(
        name,
        **(
            {
                "data": {"type": "plain"},
                "adapter": {"type": "low"},
                "optimizer": {"type": "plain"},
            }
            | more
        ),
    )


PIPELINE = Pipeline(
    "demo",
    base={"type": "plain"},
    phases=(phase("one"), phase("two")),
    defaults={"train": {"batch_size": 4}},
)


def resolved(registry, pipeline=PIPELINE, file=None, sets=()):
    return resolve(load_tree(pipeline, file, sets), registry)


def test_defaults_lie_below_every_phase(registry):
    """A phase's own value wins over the pipeline's default, which wins over the class's."""
    pipeline = Pipeline("d", base={"type": "plain"}, phases=(phase("one", train={"log_every": 3}), phase("two")),
                        defaults={"train": {"batch_size": 4, "log_every": 7}})  # fmt: skip
    one, two = resolved(registry, pipeline).config.phases
    assert (one.train.batch_size, one.train.log_every) == (4, 3)
    assert (two.train.batch_size, two.train.log_every) == (4, 7)


def test_sets_win_over_files_which_win_over_the_pipeline(registry, tmp_path):
    """--set > file > pipeline, key by key; the rest stays."""
    file = tmp_path / "my.toml"
    file.write_text("[phases.one.adapter]\nrank = 4\nalpha = 3\n")
    config = resolved(registry, file=file, sets=["phases.one.adapter.rank=2"]).config
    assert (config.phases[0].adapter.rank, config.phases[0].adapter.alpha) == (2, 3.0)
    assert config.phases[1].adapter.rank == 8


def test_a_new_type_drops_the_keys_of_the_old(registry):
    """Choosing another adapter type does not leave the first one's keys behind."""
    config = resolved(registry, sets=["phases.one.adapter.type=other"]).config
    assert isinstance(config.phases[0].adapter, Other)


def test_every_problem_is_told_at_once_with_file_line_and_key(registry, tmp_path):
    """Three mistakes, three lines, each with its place and what was expected."""
    file = tmp_path / "my.toml"
    file.write_text(
        "[phases.one.adapter]\nrank = 0\n\n[phases.two]\noptimiser = 3\n[phases.two.adapter]\nalpha = 'x'\n"
    )
    with pytest.raises(ConfigError) as caught:
        resolved(registry, file=file)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{file}:2: phases.one.adapter.rank: expected a number >= 1, got 0",
        f"{file}:5: phases.two.optimiser: unknown key; did you mean 'optimizer'?",
        f"{file}:7: phases.two.adapter.alpha: expected a number, got 'x'",
    ]


@pytest.mark.parametrize(
    "text",
    ["defaults.gate.plain=false", "phases.one.gate.own=false", "phases.two=false"],
)
def test_what_was_declared_can_be_left_out(registry, text):
    """A known type, an entry of any name that is there, and a phase; nothing is left of them."""
    found = resolved(registry, sets=["phases.one.gate.own.type=plain", text]).config
    assert [g.type for g in found.phases[0].gate] == (
        ["plain"] if "own" not in text else []
    )
    assert len(found.phases) == (1 if "two" in text else 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phases.one.adapter.rank=true", "expected an integer, got True"),
        ("phases.one.adapter.rank=4.0", "expected an integer, got 4.0"),
        ("phases.one.adapter.targets=q", "expected an array, each a string, got 'q'"),
        (
            "phases.one.adapter.pattern=3",
            "expected a table, each value an integer, got 3",
        ),
        (
            "phases.one.adapter.type=lo",
            "unknown adapter type 'lo'; did you mean 'low'?",
        ),
        ("phases.one.adapter.alpha=nan", "expected a number, got nan"),
        ("phases.one.train.micro_batch=5", "expected at most train.batch_size"),
        ("bse.type=plain", "unknown key; did you mean 'base'?"),
        (
            "train.steps=3",
            "unknown key; did you mean 'defaults.train', or one phase's?",
        ),
        ("run.seed=-1", "expected a number >= 0, got -1"),
        ("phases.one.retention.nothing=true", "unknown retention type 'nothing'"),
        ("phases.one=3", "expected a table, or false to leave the phase out"),
        ("phases.on=false", "no such phase to leave out; did you mean 'one'?"),
        (
            "defaults.gate.plan=false",
            "there is no such gate to leave out; did you mean 'plain'?",
        ),
        (
            "phases.one.retention.plian=false",
            "there is no such retention to leave out; did you mean 'plain'?",
        ),
        (
            "phases.on.optimizer.lr=1e-4",
            "phases.on: no phase of this name is declared; did you mean 'one'?",
        ),
        ("phases.one.data=3", "phases.one.data: expected a table"),
        ("phases.ones.data=true", "phases.ones.data: expected a table"),
        (
            "phases.on.data.name=x",
            "phases.on: no phase of this name is declared; did you mean 'one'?",
        ),
    ],
)
def test_wrong_values_say_what_was_expected(registry, text, message):
    """Each kind of mistake has its own answer."""
    with pytest.raises(ConfigError) as caught:
        resolved(registry, sets=[text])
    assert message in str(caught.value)


def test_entries_of_many_are_keyed_by_type_and_can_be_removed(registry):
    """retention.TYPE = true adds an entry, false takes an inherited one away."""
    pipeline = Pipeline(
        "d",
        base={"type": "plain"},
        phases=(phase("one", retention={"plain": {"lr": 0.5}}),),
    )
    assert resolved(registry, pipeline).config.phases[0].retention[0].lr == 0.5
    assert (
        resolved(registry, pipeline, sets=["phases.one.retention.plain=false"])
        .config.phases[0]
        .retention
        == ()
    )


def test_a_phase_can_be_left_out(registry):
    """phases.NAME = false removes the phase from the run."""
    assert [
        p.name for p in resolved(registry, sets=["phases.one=false"]).config.phases
    ] == ["two"]


def test_the_written_configuration_resolves_to_itself(registry, tmp_path):
    """run.toml, read back alone, gives the same configuration."""
    first = resolved(
        registry,
        sets=[
            "phases.one.adapter.rank=2",
            'phases.two.adapter.pattern."a.b"=3',
            "phases.one.gate.plain=true",
        ],
    )
    file = tmp_path / "run.toml"
    file.write_text(to_toml(first))
    again = resolve(load_tree(file=file), registry)
    assert again.config == first.config
    assert "# --set" in file.read_text()
    assert "# default" in file.read_text()


def test_files_extend_files(registry, tmp_path):
    """extends names a file beside; the later one wins."""
    (tmp_path / "a.toml").write_text(to_toml(resolved(registry)))
    (tmp_path / "b.toml").write_text(
        "extends = 'a.toml'\n[phases.two.adapter]\nrank = 5\n"
    )
    config = resolve(load_tree(file=tmp_path / "b.toml"), registry).config
    assert [p.adapter.rank for p in config.phases] == [8, 5]


def test_files_that_extend_each_other_are_refused(tmp_path):
    """A circle of extends is an error, not a recursion."""
    (tmp_path / "a.toml").write_text("extends = 'b.toml'\n")
    (tmp_path / "b.toml").write_text("extends = 'a.toml'\n")
    with pytest.raises(ConfigError, match="circle"):
        load_tree(file=tmp_path / "a.toml")


def test_unknown_pipeline_offers_the_nearest():
    """A misspelt pipeline is named with what was probably meant."""
    with pytest.raises(InputError, match="did you mean 'textmodel'"):
        load_tree("textmodl")


def test_two_plugins_that_claim_one_type_are_both_named():
    """The error names both and how to choose; choosing works."""
    registry = SpecRegistry()
    for plugin in ("alpha", "beta"):
        registry.plugin = plugin
        registry.add("adapter", "low", Low)
    with pytest.raises(InputError, match=r"'alpha' and 'beta'.*plugins.prefer"):
        registry.find("adapter", "low")
    chosen = SpecRegistry({"adapter:low": "beta"})
    for plugin in ("alpha", "beta"):
        chosen.plugin = plugin
        chosen.add("adapter", "low", Low)
    assert chosen.find("adapter", "low").plugin == "beta"


def test_lines_are_found_for_headers_dotted_keys_and_quotes():
    """The line of a value, or else that of the nearest table around it."""
    text = '# c\n[phases.one]\ntrain.steps = 3\n[phases.one.adapter]\n"rank" = 4\nd = { x = 1 }\n'
    assert line_of(text, ("phases", "one", "train", "steps")) == 3
    assert line_of(text, ("phases", "one", "adapter", "rank")) == 5
    assert line_of(text, ("phases", "one", "adapter", "d", "x")) == 6
    assert line_of(text, ("other",)) is None


def test_set_takes_toml_values_and_bare_words():
    """1e-4 is a number, [1, 2] an array, a bare word a string."""
    assert parse_set("a.b=1e-4") == {"a": {"b": 1e-4}}
    assert parse_set("a=[1,2]") == {"a": [1, 2]}
    assert parse_set("a=plain") == {"a": "plain"}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_set("nothing")


def test_a_mistake_in_defaults_is_one_problem(tmp_path):
    """Every phase takes the value; the place that has to be changed is named, and only once."""
    registry = load_plugins().registry
    file = tmp_path / "c.toml"
    file.write_text(
        'extends = "textmodel"\n[defaults.adapter]\nrnk = 3\n[phases.mcq.adapter]\nrank = "y"\n'
    )
    with pytest.raises(ConfigError) as raised:
        resolve(load_tree(file=file), registry)
    places = [(p.where, p.line) for p in raised.value.problems]
    assert places == [("defaults.adapter.rnk", 3), ("phases.mcq.adapter.rank", 5)]
    with pytest.raises(ConfigError) as raised:
        resolve(load_tree("textmodel", overrides=["defaults.adapter.rnk=3"]), registry)
    assert [p.where for p in raised.value.problems] == ["--set: defaults.adapter.rnk"]


def test_a_file_may_be_given_in_the_place_of_a_pipeline(tmp_path):
    """``mgk run my.toml`` means what ``mgk run --config my.toml`` means; two files are one too many."""
    file = tmp_path / "c.toml"
    file.write_text('extends = "textmodel"\n[run]\nseed = 5\n')
    assert load_tree(str(file)).values == load_tree(file=file).values
    with pytest.raises(InputError, match="two configuration files"):
        load_tree(str(file), file)
