"""``mgk run``, ``resume`` and ``phase``: what they say, what they leave, and how they answer wrong input."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from mgk_cli.commands.run import free_name
from mgk_core.record.ledger import read_ledger
from mgk_core.record.run_directory import Lock

FAST = ("--set", "run.threads=1")


def test_a_run_from_start_to_end(mgk, tmp_path):
    """Lines for each phase, then the outcome: gains, costs, gates, model, next command."""
    out = tmp_path / "run"
    ran = mgk("run", "textmodel", "--out", out, *FAST)
    assert (ran.code, ran.err) == (0, "")
    assert "phase 2/3 medical_dictionary: medical dictionary" in ran.out
    assert "tolerance from rounding" in ran.out
    assert ran.out.count("all gates passed") == 3 + 1
    for heading in ("gained", "cost to other probes", "gain kept", "base UNMEASURED"):
        assert heading in ran.out
    assert f"model: {out}/model" in ran.out
    assert len(ran.out.splitlines()) <= 40
    verify, last = ran.out.rstrip().splitlines()[-2:]
    assert verify == f"next: mgk verify {out}"
    assert last == f"report: {out / 'report.html'}"


def test_the_report_shows_what_was_measured(mgk, finished_run):
    """Every score of the drawn matrix stands in retention.json, and the taught cells are the phases' own."""
    table = json.loads((finished_run / "retention.json").read_text())
    shown = mgk("show", finished_run, "--all").out
    for i, row in enumerate(table["R"]):
        for j, value in enumerate(row):
            assert f"{value:.2f} ± {table['stderr'][i][j]:.2f}" in shown
    assert shown.count("◂") == 3 + 1  # one a phase, one in the legend


def test_json_prints_one_object_a_line_and_nothing_else(mgk, tmp_path):
    """Every line parses; the last is the result, whose weights are the ledger's."""
    out = tmp_path / "run"
    ran = mgk("run", "textmodel", "--out", out, *FAST, "--json")
    assert ran.code == 0
    events = ran.rows
    assert {"load", "evaluation", "step", "merge", "verify", "phase"} <= {
        e["event"] for e in events
    }
    assert events[-1]["event"] == "result"
    assert events[-1]["weights"] == read_ledger(out).head
    assert events[-1]["retention"]["rows"][-1]["name"] == "mcq"


def test_json_tells_errors_too(mgk, tmp_path):
    """A program that reads the lines learns why there is no result."""
    ran = mgk("run", "nothing", "--out", tmp_path / "run", "--json")
    assert ran.code == 2
    assert ran.rows == [
        {
            "event": "error",
            "exit_code": 2,
            "message": ran.err.removeprefix("error: ").rstrip(),
        }
    ]


def test_quiet_prints_the_result_line_and_the_path(mgk, tmp_path):
    """Two lines; the second is the run directory, for scripts."""
    ran = mgk("run", "textmodel", "--out", tmp_path / "run", *FAST, "--quiet")
    assert ran.code == 0
    result, path = ran.out.splitlines()
    assert result == "textmodel finished: 3 of 3 phases merged, all gates passed"
    assert path == str(tmp_path / "run")


def test_until_stops_and_resume_goes_on(mgk, tmp_path, finished_run):
    """A run in two halves has the weights of one run."""
    out = tmp_path / "run"
    first = mgk("run", "textmodel", "--out", out, *FAST, "--until", "plain_text")
    assert first.code == 0
    assert f"next: mgk resume {out}" in first.out
    assert "stopped between phases" in " ".join(first.out.split())
    second = mgk("resume", out)
    assert second.code == 0
    assert read_ledger(out).head == read_ledger(finished_run).head


def test_a_run_is_the_same_twice(mgk, tmp_path, finished_run):
    """Same seed, same machine: the same digests; another seed: others."""
    assert (
        mgk("run", "textmodel", "--out", tmp_path / "one", *FAST, "--quiet").code == 0
    )
    assert (
        mgk(
            "run",
            "textmodel",
            "--out",
            tmp_path / "two",
            *FAST,
            "--quiet",
            "--seed",
            "1",
        ).code
        == 0
    )
    one, two, known = (
        read_ledger(p) for p in (tmp_path / "one", tmp_path / "two", finished_run)
    )
    assert [p.merged for p in one.phases] == [p.merged for p in known.phases]
    assert one.head != two.head


def test_a_refused_phase_is_rolled_back_and_told(mgk, tmp_path):
    """A gate that asks for too much: exit code 1, the reason, the base as before, what to do."""
    out = tmp_path / "run"
    ran = mgk(
        "run", "textmodel", "--out", out, *FAST, "--until", "plain_text",
        "--set", "phases.plain_text.gate.min-gain.to_floor=0.99",
    )  # fmt: skip
    assert ran.code == 1
    assert "rolled back" in ran.out
    assert "min-gain" in ran.err
    assert f"next: mgk phase {out} plain_text --out DIR" in ran.out
    assert read_ledger(out).phases[0].merged == read_ledger(out).base
    again = mgk("resume", out)
    assert again.code == 2
    assert "refused by its gates" in again.err


def test_one_phase_from_its_saved_predecessor(mgk, tmp_path, finished_run):
    """Nothing earlier is trained again; changed settings give another phase in a new directory."""
    out = tmp_path / "fork"
    ran = mgk(
        "phase",
        finished_run,
        "mcq",
        "--out",
        out,
        "--set",
        "phases.mcq.optimizer.lr=4e-4",
    )
    assert ran.code == 0
    assert "phase 1/3" not in ran.out
    before, after = read_ledger(finished_run), read_ledger(out)
    assert [p.merged for p in after.phases[:2]] == [p.merged for p in before.phases[:2]]
    assert after.phases[2].merged != before.phases[2].merged


def test_the_next_phase_of_an_unfinished_run_runs_in_place(
    mgk, tmp_path, half_run, finished_run
):
    """``mgk phase RUN PHASE`` without --out goes on in the run itself."""
    run = tmp_path / "run"
    shutil.copytree(half_run, run)
    assert mgk("phase", run, "medical_dictionary", "--quiet").code == 0
    known = {p.phase: p.merged for p in read_ledger(finished_run).phases}
    assert {p.phase: p.merged for p in read_ledger(run).phases} == {
        k: v for k, v in known.items() if k != "mcq"
    }


def test_the_default_directory_is_the_first_free_one(tmp_path):
    """runs/PIPELINE-N counts up."""
    assert free_name("textmodel", tmp_path) == tmp_path / "textmodel-1"
    (tmp_path / "textmodel-1").mkdir()
    assert free_name("textmodel", tmp_path) == tmp_path / "textmodel-2"


WRONG = [
    (("run", "textmodl"), 2, "unknown pipeline 'textmodl'; did you mean 'textmodel'?"),
    (("run", "../textmodel"), 2, "unknown pipeline '../textmodel'"),
    (
        ("run", "textmodel", "--until", "mqc"),
        2,
        "--until mqc: no such phase; did you mean 'mcq'?",
    ),
    (
        ("run", "textmodel", "--without-plugin", "lor"),
        2,
        "no such plugin; did you mean 'lora'?",
    ),
    (
        ("run", "textmodel", "--set", "phases.mcq.optimiser.lr=1"),
        2,
        "did you mean 'optimizer'?",
    ),
    (
        ("run", "textmodel", "--set", "phases.mcq.adapter.rank=none"),
        2,
        "expected an integer",
    ),
    (
        ("run", "textmodel", "--set", "phases.mcq.adapter.rank=0"),
        2,
        "expected a number >= 1, got 0",
    ),
    (("run", "textmodel", "--set", "nonsense"), 2, "expected KEY=VALUE"),
    (("run", "textmodel", "--set", "name='../x'"), 2, "pipeline name '../x'"),
    (
        ("run", "textmodel", "--set", "phases.mcq.data.type=teacer"),
        2,
        "did you mean 'teacher'?",
    ),
    (
        ("run", "textmodel", "--set", "phases.mcq.adapter.targets=['layer9']"),
        2,
        "layer9",
    ),
    (("run", "textmodel", "--seed", "-1"), 2, "-1 is not in the range"),
    (("run", "textmodel", "--seed", "many"), 2, "'many' is not a valid integer"),
    (
        ("run", "textmodel", "--device", "tpu"),
        2,
        "expected auto, cpu, cuda, cuda:N or mps",
    ),
    (("run", "textmodel", "--device", "mps"), 3, "'auto' would take"),
    (
        ("run", "textmodel", "--config", "/nowhere.toml"),
        2,
        "/nowhere.toml: cannot be read: No such file or directory",
    ),
    (("run", "textmodel", "--config", "/"), 2, "expected a TOML file"),
    (("run", "textmodel", "extra"), 2, "unexpected extra argument"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), WRONG, ids=[" ".join(a) for a, _, _ in WRONG]
)
def test_wrong_input_is_answered_and_leaves_nothing(
    mgk, tmp_path, arguments, code, said
):
    """Each: the right exit code, a message that names the place and the mend, no traceback, no directory."""
    out = tmp_path / "run"
    ran = mgk(*arguments, "--out", out)
    assert ran.code == code
    assert said in ran.err
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err
    assert not out.exists()


def test_cuda_where_there_is_none(mgk, tmp_path):
    """The machine's fault: exit code 3, and what auto would take."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    ran = mgk("run", "textmodel", "--device", "cuda", "--out", tmp_path / "run")
    assert ran.code == 3
    assert "'auto' would take 'cpu'" in ran.err


def test_all_errors_at_once_with_file_and_line(mgk, tmp_path):
    """Two mistakes in a file: two lines, each with its place, and a count."""
    file = tmp_path / "my.toml"
    file.write_text(
        'extends = "textmodel"\n\n[phases.mcq.adapter]\nrank = 0\n\n[phases.mcq.optimiser]\nlr = 1.0\n'
    )
    ran = mgk("run", "--config", file, "--out", tmp_path / "run")
    assert ran.code == 2
    lines = ran.err.splitlines()
    assert (
        f"error: {file}:4: phases.mcq.adapter.rank: expected a number >= 1, got 0"
        in lines
    )
    assert (
        f"error: {file}:6: phases.mcq.optimiser: unknown key; did you mean 'optimizer'?"
        in lines
    )
    assert lines[-1] == "2 errors; nothing was run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["file", "full", "run"])
def test_an_output_directory_in_use_is_refused(mgk, tmp_path, finished_run, kind):
    """A file, a full directory, a run: each refused with what to do, and left as it was."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "full":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out = finished_run
    before = {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}
    ran = mgk("run", "textmodel", "--out", out)
    assert ran.code == 2
    assert "choose another --out" in ran.err
    assert {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()} == before
    if kind == "run":
        assert f"mgk resume {out}" in ran.err


@pytest.mark.parametrize(
    "command", ["show", "resume", "verify", "rebuild", "ask", "chat", "export", "phase"]
)
def test_a_missing_or_foreign_run_directory_is_refused(mgk, tmp_path, command):
    """Every command that takes a run says what it expected."""
    more = {
        "rebuild": ["--out", tmp_path / "m"], "ask": ["hello"], "export": ["--as-adapter", "--out", tmp_path / "m"],
        "phase": ["mcq"],
    }.get(command, [])  # fmt: skip
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for place, said in (
        (tmp_path / "none", "no such run directory"),
        (foreign, "no run directory"),
    ):
        ran = mgk(command, place, *more)
        assert ran.code == 2
        assert said in ran.err
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "m").exists()


def test_a_run_that_another_process_works_on_is_refused(mgk, tmp_path, half_run):
    """The second process says who is there; show tells it too."""
    run = tmp_path / "run"
    shutil.copytree(half_run, run)
    lock = Lock(run)
    try:
        ran = mgk("resume", run)
        assert ran.code == 2
        assert f"in use by process {os.getpid()}" in ran.err
        assert "running" in mgk("show", run).out
        assert mgk("verify", run).code == 2
    finally:
        lock.release()


def test_resume_refuses_what_changed_and_takes_it_where_asked(mgk, tmp_path, half_run):
    """A changed setting is named with both values; --accept-change goes on and records it."""
    run = tmp_path / "run"
    shutil.copytree(half_run, run)
    changed = (run / "run.toml").read_text().replace("lr = 0.0003", "lr = 0.0004")
    assert changed != (run / "run.toml").read_text()
    (run / "run.toml").write_text(changed)
    ran = mgk("resume", run)
    assert ran.code == 2
    assert "config.phases.mcq.optimizer.lr: was 0.0003, is 0.0004" in ran.err
    assert "--accept-change config.phases.mcq.optimizer.lr" in ran.err
    taken = mgk("resume", run, "--accept-change", "config.phases.mcq.optimizer.lr")
    assert taken.code == 0
    assert "accepted change" in taken.out


LONG = (
    "--set",
    "phases.plain_text.train.epochs=20000",
    "--set",
    "phases.plain_text.train.log_every=1",
)


@contextmanager
def stepping(out):
    """Run a long run in a process of its own, and hand it over in the middle of its steps."""
    command = [
        sys.executable,
        "-m",
        "mgk_cli",
        "run",
        "textmodel",
        "--out",
        str(out),
        *FAST,
        *LONG,
        "--json",
    ]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=alone
    ) as child:
        for line in child.stdout:
            if json.loads(line)["event"] == "step":
                break
        yield child


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_and_says_how_to_resume(mgk, tmp_path, number):
    """Ctrl-C and SIGTERM: exit code 130, the command to resume, a checkpoint, no traceback."""
    out = tmp_path / "run"
    with stepping(out) as child:
        child.send_signal(number)
        rest, err = (
            child.stdout.read(),
            child.stderr.read(),
        )  # communicate() would begin behind what is buffered here
    assert child.returncode == 130
    assert f"Resume with: mgk resume {out}" in err.decode()
    assert "stopping after this step" in err.decode()
    assert "Traceback" not in err.decode()
    assert all(json.loads(line) for line in rest.splitlines())
    assert list(out.glob("phases/0-plain_text/checkpoint/step-*"))
    kept = re.search(r"stopped after step (\d+) of 400000", err.decode())
    shown = " ".join(mgk("show", out).out.split())
    assert (
        f"interrupted in plain_text at step {kept[1]} of 400000: 0 of 3 phases merged"
        in shown
    )
    assert shown.rstrip().endswith(f"next: mgk resume {out}")


@pytest.mark.parametrize("apart", [0.01, 0.2])
def test_an_impatient_second_signal_ends_at_once_and_in_words(tmp_path, apart):
    """Ctrl-C twice: exit code 130, and no traceback from wherever it fell."""
    out = tmp_path / "run"
    with stepping(out) as child:
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(apart)
        child.stdout.read()
        err = child.stderr.read().decode()
    assert child.returncode == 130
    assert "Traceback" not in err, err


def test_a_terminal_gets_bars(tmp_path, finished_run):
    """On a terminal of 80 columns: a live line with loss, pace, memory and time left; no line is wider."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "cols", "80", "rows", "40"], stdin=slave, check=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "run", "textmodel", "--out", str(tmp_path / "run"), *FAST,
         "--set", "phases.plain_text.train.epochs=300", "--set", "phases.plain_text.title=한국어 의학 일반 텍스트"],
        stdout=slave, stderr=slave, stdin=slave, env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    shown = _drain(master, child)
    assert child.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    live = [
        line
        for line in re.split(r"[\r\n]+", plain)
        if "samples/s" in line and "left" in line
    ]
    assert live
    wanted = r"plain_text.* \d+/6000 .*loss [\d.]+ .*samples/s .*MB .*\d:\d\d left"
    assert any(re.search(wanted, line) for line in live)
    assert "한국어 의학 일반 텍스트" in plain
    from rich.cells import cell_len

    assert (
        max(
            cell_len(line)
            for line in re.split(r"[\r\n]+", plain)
            if "mgk" not in line and "model" not in line and "report:" not in line
        )
        <= 80
    )


def _drain(master, child, timeout=90):
    """Read a pseudo-terminal until its process has ended."""
    data, until = b"", time.monotonic() + timeout
    while time.monotonic() < until:
        ready, _, _ = select.select([master], [], [], 0.2)
        try:
            data += os.read(master, 65536) if ready else b""
        except OSError:
            break
        if not ready and child.poll() is not None:
            break
    child.wait(timeout=10)
    os.close(master)
    return data.decode(errors="replace")


def test_time_that_is_up_is_not_called_a_keypress(tmp_path):
    """`--minutes`: the message says what ended the run, and how to resume it."""
    command = [
        sys.executable,
        "-m",
        "mgk_cli",
        "run",
        "textmodel",
        "--out",
        str(tmp_path / "run"),
    ]
    ran = subprocess.run(
        [*command, "--minutes", "0.0001"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 130
    assert "the time of --minutes is up" in ran.stderr
    assert "Ctrl-C" not in ran.stderr
