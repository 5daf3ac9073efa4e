"""Wrong arguments of the command line."""

from __future__ import annotations

import pytest

RLM, ESC = "\u202e", "\x1b[31m"  # turns text round; colours it

CASES = {
    "no such command": (["rnu"], "rnu", "run"),
    "a command with a mark": ([RLM + "run"], "no such command"),
    "no such option": (["run", "--uot", "x"], "--uot", "--out"),
    "an option without its value": (["run", "textmodel", "--out"], "--out"),
    "too many arguments": (["run", "textmodel", "more"], "more"),
    "no argument": (["resume"], "RUN"),
    "unknown pipeline": (
        ["run", "textmodle"],
        "unknown pipeline 'textmodle'",
        "did you mean 'textmodel'",
    ),
    "pipeline as a path": (
        ["run", "../../etc/passwd"],
        "unknown pipeline",
        "textmodel",
    ),
    "pipeline with control characters": (
        ["run", f"text{ESC}model"],
        "unknown pipeline",
    ),
    "pipeline with a right-to-left mark": (
        ["run", f"text{RLM}model"],
        "unknown pipeline",
    ),
    "pipeline of no length": (["run", ""], "unknown pipeline"),
    "pipeline of great length": (["run", "x" * 3000], "unknown pipeline"),
    "set without value": (
        ["run", "textmodel", "--set", "run.seed"],
        "--set run.seed",
        "expected KEY=VALUE",
    ),
    "set without key": (["run", "textmodel", "--set", "=3"], "expected KEY=VALUE"),
    "set with an unknown key": (
        ["run", "textmodel", "--set", "run.sede=3"],
        "run.sede",
        "did you mean 'seed'",
    ),
    "set deep below a value": (
        ["run", "textmodel", "--set", "run.seed.x=3"],
        "run.seed",
        "expected an integer",
    ),
    "set with a line break": (
        ["run", "textmodel", "--set", "run.seed=1\nrun.x=2"],
        "line break",
    ),
    "set with a key of signs": (
        ["run", "textmodel", "--set", "a b.c=2"],
        "quote parts",
    ),
    "set with an open string": (
        ["run", "textmodel", "--set", 'run.device="cpu'],
        "expected auto, cpu",
    ),
    "set of a phase that is none": (
        ["run", "textmodel", "--set", "phases.mqc.train.steps=2"],
        "phases.mqc",
    ),
    "set with nesting": (
        ["run", "textmodel", "--set", "run.seed=" + "[" * 3000],
        "run.seed",
    ),
    "until no phase": (
        ["run", "textmodel", "--until", "mqc"],
        "--until mqc",
        "did you mean 'mcq'",
    ),
    "seed of text": (["run", "textmodel", "--seed", "many"], "--seed", "many"),
    "seed below zero": (["run", "textmodel", "--seed", "-1"], "--seed", "x>=0"),
    "seed of great length": (
        ["run", "textmodel", "--seed", "9" * 60],
        "seed",
        "at most 9223372036854775807",
    ),
    "device of no kind": (
        ["run", "textmodel", "--device", "gpu"],
        "gpu",
        "expected auto, cpu, cuda",
    ),
    "device with a number too much": (
        ["run", "textmodel", "--device", "cpu:x"],
        "cpu:x",
        "expected auto",
    ),
    "device that is not supported": (
        ["run", "textmodel", "--device", "meta"],
        "meta",
        "expected auto",
    ),
    "config that is missing": (["run", "--config", "none.toml"], "none.toml"),
    "config that is a folder": (["run", "--config", "."], "expected a TOML file"),
    "config and no pipeline": (
        ["config"],
        "expected a pipeline or a configuration file",
    ),
    "plugin that is none": (
        ["run", "textmodel", "--without-plugin", "lroa"],
        "lroa",
        "did you mean 'lora'",
    ),
    "without the plugin that it needs": (
        ["run", "textmodel", "--without-plugin", "lora"],
        "adapter type 'lora'",
    ),
    "resume of nothing": (
        ["resume", "runs/none"],
        "runs/none",
        "no such run directory",
    ),
    "resume of a folder": (["resume", "."], "no run directory", "mgk run --out"),
    "resume of a name with a mark": (["resume", f"x{RLM}y"], "no such run directory"),
    "resume of a name of great length": (
        ["resume", "x" * 2000],
        "cannot be a run directory",
    ),
    "show of nothing": (["show", "none"], "none", "no such run directory"),
    "verify of nothing": (["verify", "none"], "none", "no such run directory"),
    "rebuild of nothing": (
        ["rebuild", "none", "--out", "new"],
        "none",
        "no such run directory",
    ),
    "export of nothing": (
        ["export", "none", "--as-adapter", "--out", "new"],
        "none",
        "no such run directory",
    ),
    "phase of nothing": (["phase", "none", "mcq"], "none", "no such run directory"),
    "minutes that are no number": (
        ["run", "textmodel", "--minutes", "nan"],
        "--minutes",
        "expected a number",
    ),
    "ask of nothing": (["ask", "none", "word"], "none"),
    "plan of nothing": (["plan", "none"], "unknown pipeline 'none'"),
    "a plugin's check of nothing": (["check-plugin", "none"], "none"),
    "a new plugin with a name of signs": (["new-plugin", "adapter", "../x"], "../x"),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(answered, name):
    """Each is answered on standard error, with what was wrong and what would be right."""
    arguments, *words = CASES[name]
    answered(arguments, *words)


@pytest.mark.parametrize(
    ("files", "out", "said"),
    [
        ({"out": "text"}, "out", "exists and is not a directory"),
        ({"out/notes.txt": "mine"}, "out", "is not empty"),
        ({"out/journal.jsonl": ""}, "out", "mgk resume out"),
        ({"out/ledger.json": "{}"}, "out", "mgk resume out"),
        (
            {"out": lambda p: p.symlink_to(p.parent)},
            "out",
            "exists and is not a directory",
        ),
        (
            {"out": lambda p: p.symlink_to("nowhere")},
            "out",
            "exists and is not a directory",
        ),
        (
            {"a": lambda p: p.symlink_to("b"), "b": lambda p: p.symlink_to("a")},
            "a/out",
            "a/out",
        ),
        ({"file": "x"}, "file/out", "file/out"),
        ({}, "x" * 300, "File name too long"),
        ({}, "/proc/none/out", "/proc/none"),
    ],
)
def test_a_place_where_no_run_can_be(answered, files, out, said):
    """What is in the way stays as it is; another --out is asked for."""
    answered(
        ["run", "textmodel", "--out", out, "--set", "run.threads=1"],
        said,
        "choose",
        files=files,
    )
