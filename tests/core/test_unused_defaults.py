"""A default that every phase overrides is noted: it would be ignored in silence."""

import pytest

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.host.manager import load_plugins


def notes(tmp_path, text, *overrides):
    """Return the notes of a configuration file that extends the pipeline ``textmodel``."""
    file = tmp_path / "my.toml"
    file.write_text('extends = "textmodel"\n' + text)
    return resolve(
        load_tree(file=file, overrides=overrides), load_plugins().registry
    ).notes


OWN = """
[phases.plain_text.optimizer]
lr = 1e-3
[phases.medical_dictionary.optimizer]
lr = 1e-3
[phases.mcq.optimizer]
lr = 1e-3
"""


def test_a_default_that_every_phase_overrides_is_noted_with_its_place(tmp_path):
    """File, line and key are named; a key that one phase inherits is not."""
    text = f"[defaults.optimizer]\nlr = 1e-5\nmomentum = 0.5\n{OWN}"
    (note,) = notes(tmp_path, text)
    assert "defaults.optimizer.lr" in note
    assert "my.toml:3" in note


def test_a_default_of_another_type_is_noted(tmp_path):
    """Keys of a type that no phase has mean nothing."""
    types = OWN.replace("lr = 1e-3", 'type = "sgd"\nlr = 1e-3')
    found = notes(
        tmp_path, f'[defaults.optimizer]\ntype = "adamw"\nbetas = [0.9, 0.9]\n{types}'
    )
    assert [n.split()[0] for n in found] == [
        "defaults.optimizer.type",
        "defaults.optimizer.betas",
    ]


@pytest.mark.parametrize(
    "override", ["defaults.optimizer.lr=1e-5", "defaults.gate.min-gain=false"]
)
def test_set_counts_as_given(tmp_path, override):
    """A default of --set is noted where it has no effect, and only there."""
    found = notes(tmp_path, OWN, override)
    assert len(found) == ("lr" in override)


def test_a_pipelines_own_defaults_are_its_authors_business(tmp_path):
    """What comes with the package is not noted."""
    assert notes(tmp_path, OWN) == ()
