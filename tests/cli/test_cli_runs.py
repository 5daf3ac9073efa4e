"""Commands on a run that stands: show, verify, rebuild, export, ask, chat."""

import json
import re
import shutil

import pytest

from mgk_core.record.ledger import read_ledger


@pytest.fixture
def copy(finished_run, tmp_path):
    """Return a copy of the finished run that a test may damage."""
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy"


def test_show_draws_the_matrix_as_a_heat_map(mgk, finished_run):
    """Without colours each cell's change against row 0 is a shade with a sign."""
    out = mgk("show", finished_run, "--all").out
    assert "+█" in out
    assert "weights after" in out


def test_show_fits_eighty_columns(mgk, finished_run, monkeypatch):
    """No line is wider, and the columns that matter stay."""
    from rich.cells import cell_len

    monkeypatch.setenv("COLUMNS", "80")
    out = mgk("show", finished_run, "--all").out
    lines = [line for line in out.splitlines() if str(finished_run) not in line]
    assert max(map(cell_len, lines)) <= 80
    assert "vs unmerged" in out


def test_a_run_that_scored_one_item_is_shown(mgk, tmp_path):
    """One item has no standard error: its score stands alone, and no difference is called significant."""
    run = tmp_path / "one"
    mgk(
        "run",
        "textmodel",
        "--out",
        run,
        "--set",
        "defaults.evaluate.limit=1",
        "--set",
        "defaults.gate.min-gain=false",
    )
    matrix, _, rest = mgk("show", run, "--all").out.partition("◂ trained in")
    assert "nan" not in matrix + rest
    assert "±" not in matrix[matrix.index("squared_error ↓\n") :]
    assert "*" not in rest.split("same items")[1].split("is better")[0]
    (row,) = mgk("show", run, "--json").rows
    assert "NaN" not in json.dumps(row)
    assert row["retention"]["stderr"][0] == ["nan"] * 3


def test_show_of_an_unfinished_run_says_how_to_go_on(mgk, half_run):
    """What has not begun is said to be to come, and no later score is shown."""
    out = mgk("show", half_run).out
    assert "stopped between phases" in out
    assert "pending" in out
    assert f"next: mgk resume {half_run}" in out


def test_show_json_is_the_whole_run(mgk, finished_run):
    """Phases with their ledger rows, the matrix, times, status."""
    (row,) = mgk("show", finished_run, "--json").rows
    assert row["status"] == "finished"
    assert [p["entry"]["merged"] for p in row["phases"]] == [
        p.merged for p in read_ledger(finished_run).phases
    ]
    assert row["retention"]["rows"][0]["name"] == "base"
    assert row["times"]["training"] > 0


def test_runs_side_by_side_differ_where_they_differ(mgk, finished_run, half_run):
    """Last scores of both, and the settings that are not the same: here none."""
    out = mgk("show", finished_run, half_run).out
    assert "finished" in out
    assert "stopped between phases" in out
    assert "same configuration" in out
    assert re.search(r"\d ± \d", out)
    assert (
        "± standard error\n" in out
    )  # and no word of intervals, of which there are none


def test_runs_of_other_settings_are_told_apart(mgk, finished_run, copy):
    """A changed value stands with both values."""
    text = (copy / "run.toml").read_text()
    (copy / "run.toml").write_text(text.replace("lr = 0.0003", "lr = 0.0004"))
    out = mgk("show", finished_run, copy).out
    assert any(
        line.split() == ["phases.mcq.optimizer.lr", "0.0003", "0.0004"] for line in out.splitlines()
    )  # fmt: skip


def test_a_matrix_that_is_not_what_was_written_is_not_shown(mgk, copy):
    """A changed score is never displayed as if it had been measured."""
    file = copy / "retention.json"
    file.write_text(file.read_text().replace("48.", "11.", 1))
    ran = mgk("show", copy)
    assert ran.code == 0
    assert "is not what was written, and not shown" in " ".join(ran.out.split())
    assert "gain kept" not in ran.out


def test_verify_a_sound_run(mgk, finished_run):
    """Every file, and with --weights the model built again: exit code 0."""
    ran = mgk("verify", finished_run, "--weights")
    assert ran.code == 0
    assert "every file is unchanged" in ran.out
    assert f"{read_ledger(finished_run).head[:12]}…, identical to the ledger" in ran.out


def test_verify_names_all_that_differs_the_first_first(mgk, copy):
    """Three damaged files, a stranger and a missing one: all listed, exit code 2."""
    for name in ("run.toml", "phases/1-medical_dictionary/merge.json"):
        with (copy / name).open("a") as file:
            file.write(" ")
    (copy / "model/config.json").unlink()
    (copy / "stranger.bin").write_bytes(b"?")
    ran = mgk("verify", copy)
    assert ran.code == 2
    assert f"error: {copy}/run.toml: differs" in ran.out
    assert f"error: {copy}/model/config.json: is missing" in ran.out
    assert f"error: {copy}/phases/1-medical_dictionary/merge.json: differs" in ran.out
    assert f"note: {copy}/stranger.bin: is on no record" in ran.out
    assert ran.out.splitlines()[-1].startswith("3 errors in ")
    assert ran.out.splitlines()[-1].endswith("first: run.toml")


def test_verify_json(mgk, copy):
    """The same as data."""
    (copy / "metrics.jsonl").write_text("")
    ran = mgk("verify", copy, "--json")
    assert ran.code == 2
    assert not ran.rows[0]["sound"]
    assert ran.rows[0]["findings"][0]["path"] == "metrics.jsonl"


def test_rebuild_a_prefix_bit_for_bit(mgk, finished_run, tmp_path):
    """The model as it stood after the first phase: the ledger's digest, and a directory that loads."""
    out = tmp_path / "model"
    ran = mgk("rebuild", finished_run, "--until", "plain_text", "--out", out)
    assert ran.code == 0
    assert "identical to the ledger" in ran.out
    record = json.loads((out / "mgk-rebuild.json").read_text())
    assert record["weights"] == read_ledger(finished_run).phases[0].merged
    assert {"config.json", "model.safetensors"} <= {p.name for p in out.iterdir()}


def test_rebuild_of_the_whole_run_is_its_model(mgk, finished_run, tmp_path):
    """Without --until: the very bytes of model/."""
    assert mgk("rebuild", finished_run, "--out", tmp_path / "model").code == 0
    name = "model.safetensors"
    assert (tmp_path / "model" / name).read_bytes() == (
        finished_run / "model" / name
    ).read_bytes()


def test_rebuild_without_and_scaled_phases_says_that_no_run_had_it(
    mgk, finished_run, tmp_path
):
    """A model that never was is never presented with scores."""
    ran = mgk(
        "rebuild",
        finished_run,
        "--without",
        "plain_text",
        "--scale",
        "mcq=0.5",
        "--out",
        tmp_path / "m",
    )
    assert ran.code == 0
    assert "base + medical_dictionary + 0.5·mcq" in ran.out
    assert "scores are not known" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--until", "mqc"), "did you mean 'mcq'?"),
        (("--without", "plain"), "did you mean 'plain_text'?"),
        (("--scale", "mcq"), "expected PHASE=FACTOR"),
        (("--scale", "mcq=nan"), "expected PHASE=FACTOR"),
        (
            ("--until", "plain_text", "--without", "mcq"),
            "comes after the phase at which --until stops",
        ),
    ],
)
def test_rebuild_refuses_what_cannot_be(mgk, finished_run, tmp_path, arguments, said):
    """Unknown phases and factors: exit code 2, nothing made."""
    ran = mgk("rebuild", finished_run, *arguments, "--out", tmp_path / "m")
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "m").exists()


def test_rebuild_refuses_a_damaged_adapter(mgk, copy, tmp_path):
    """A changed adapter is never merged silently."""
    file = copy / "phases/0-plain_text/adapter/state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    ran = mgk("rebuild", copy, "--out", tmp_path / "m")
    assert ran.code == 2
    assert "does not match its digest" in ran.err
    assert not (tmp_path / "m").exists()


def test_export_says_what_it_wrote(mgk, finished_run, tmp_path):
    """One adapter of the summed rank, held against the run's weights; a second time is refused."""
    out = tmp_path / "adapter"
    ran = mgk("export", finished_run, "--as-adapter", "--out", out)
    assert ran.code == 0
    assert "plain_text + medical_dictionary + mcq" in ran.out
    assert "rank 24, 10,752 parameters" in ran.out
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 24
    assert mgk("export", finished_run, "--as-adapter", "--out", out).code == 2


def test_export_asks_what_to_export(mgk, finished_run, tmp_path):
    """A format is needed, and the known ones are listed."""
    ran = mgk("export", finished_run, "--out", tmp_path / "a")
    assert ran.code == 2
    assert "hf, peft" in ran.err


@pytest.mark.parametrize("command", [("ask", "hello"), ("chat",)])
def test_a_model_without_words_cannot_be_asked(mgk, finished_run, command):
    """The reference network has no tokenizer; the answer says so."""
    name, *rest = command
    ran = mgk(name, finished_run, *rest)
    assert ran.code == 2
    assert "not a language model" in ran.err


@pytest.fixture
def drawer(tmp_path, monkeypatch):
    """Install a distribution that draws a retention matrix by writing its rows' names."""
    place = tmp_path / "drawer"
    place.mkdir()
    (place / "drawing.py").write_text(
        "def draw(table, path):\n    path.write_text(' '.join(r['name'] for r in table['rows']))\n"
    )
    info = place / "mgk_drawer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mgk-drawer\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[mgk.pictures]\nretention = drawing:draw\n")
    monkeypatch.syspath_prepend(str(place))


@pytest.mark.usefixtures("drawer")
def test_a_plugin_draws_the_matrix(mgk, finished_run, tmp_path):
    """--plot hands the matrix to whoever draws; a file that is there is not overwritten, several runs are refused."""
    picture = tmp_path / "picture.svg"
    assert mgk("show", finished_run, "--plot", picture).code == 0
    assert picture.read_text() == "base plain_text medical_dictionary mcq"
    again = mgk("show", finished_run, "--plot", picture)
    assert (again.code, picture.read_text()) == (
        2,
        "base plain_text medical_dictionary mcq",
    )
    assert (
        mgk("show", finished_run, finished_run, "--plot", tmp_path / "x.svg").code == 2
    )
