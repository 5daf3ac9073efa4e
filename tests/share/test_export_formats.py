"""`mgk export --format`: what it writes, and what it refuses, through the command line."""

import filecmp
import shutil
import subprocess
import sys

import pytest

from mgk_cli.main import invoke

pytest.importorskip("gguf")


def test_hf_is_the_runs_model(language_run, tmp_path, capsys):
    """Every file of RUN/model, byte for byte."""
    out = tmp_path / "model"
    assert (
        invoke(["export", str(language_run), "--format", "hf", "--out", str(out)]) == 0
    )
    names = [p.name for p in (language_run / "model").iterdir()]
    same, other, missing = filecmp.cmpfiles(
        language_run / "model", out, names, shallow=False
    )
    assert (sorted(same), other, missing) == (sorted(names), [], [])
    assert "equal to the run's record" in capsys.readouterr().out


def test_gguf_brings_weights_modelfile_card_and_notice(language_run, tmp_path, capsys):
    """The file is named after the directory and its type."""
    out = tmp_path / "small"
    assert (
        invoke(
            [
                "export",
                str(language_run),
                "--format",
                "gguf",
                "--type",
                "q8_0",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert {p.name for p in out.iterdir()} == {
        "small-Q8_0.gguf", "Modelfile", "README.md", "NOTICE.md",
    }  # fmt: skip
    assert "read back and compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--format", "ggf"], "did you mean 'gguf'"),
        ([], "known: hf, peft, gguf"),
        (["--format", "gguf", "--type", "q4"], "expected one of f16"),
        (["--format", "hf", "--type", "f16"], "--type"),
        (["--as-adapter", "--format", "hf"], "--format peft"),
        (["--as-adapter", "--type", "f16"], "--type"),
        (["--format", "hf", "--base", "x"], "--base"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, word, language_run, tmp_path, capsys):
    """Exit code 2, the option named, nothing written."""
    out = tmp_path / "out"
    assert invoke(["export", str(language_run), *arguments, "--out", str(out)]) == 2
    assert word in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_was_changed_is_not_exported(language_run, tmp_path, capsys):
    """RUN/model is compared with the ledger first."""
    run = tmp_path / "run"
    shutil.copytree(language_run, run)
    (run / "model/tokenizer.json").write_text("{}")
    assert (
        invoke(["export", str(run), "--format", "gguf", "--out", str(tmp_path / "out")])
        == 2
    )
    assert "tokenizer.json" in capsys.readouterr().err


def test_a_base_of_another_kind_has_no_gguf(finished_run, tmp_path, capsys):
    """The reference network is no model of transformers."""
    assert (
        invoke(
            [
                "export",
                str(finished_run),
                "--format",
                "gguf",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "not a model of transformers" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapters_export_prints_nothing_of_other_libraries(language_run, tmp_path):
    """PEFT imports bitsandbytes and calls what transformers deprecates; no user can act on that."""
    pytest.importorskip("peft")
    command = [
        sys.executable,
        "-m",
        "mgk_cli",
        "export",
        language_run,
        "--as-adapter",
        "--out",
        tmp_path / "a",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("adapter ")
