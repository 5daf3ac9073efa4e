"""Wrong configuration files: every place is named with file and line."""

from __future__ import annotations

import pytest

HEAD = 'extends = "textmodel"\n'
BASE = '[base]\ntype = "reference"\n'
OWN = (
    'name = "own"\n[base]\ntype = "reference"\n[phases.one]\ndata = {type = "teacher"}\noptimizer = {type = "sgd"}\n'
    'adapter = {type = "lora", rank = 2, alpha = 4, targets = ["layer1"]}\n'
)


def phase(line):
    """Return a file that sets one more thing of a phase."""
    return f"{HEAD}[phases.mcq]\n{line}\n"


CASES = {
    # the form of the file
    "empty": ("", "missing: expected a table with a type"),
    "not toml": ("run = \n", "c.toml:1", "not valid TOML"),
    "open table": (HEAD + "[run\n", "c.toml:2", "not valid TOML"),
    "a key twice": (HEAD + "[run]\nseed = 1\nseed = 2\n", "c.toml", "not valid TOML"),
    "a table twice": (HEAD + "[run]\n[run]\n", "c.toml", "not valid TOML"),
    "utf-16": (HEAD.encode("utf-16"), "c.toml", "not UTF-8", "save the file as UTF-8"),
    "latin-1": (b'title = "caf\xe9"\n', "c.toml", "not UTF-8 at byte 12"),
    "cp949": ('title = "한국어"\n'.encode("cp949"), "c.toml", "not UTF-8"),
    "null bytes": (b"\0\0\0", "c.toml", "not valid TOML"),
    "control characters": (b'title = "a\x1b[31mb"\n', "c.toml", "not valid TOML"),
    "huge": (lambda p: p.write_bytes(b"#" * (5 * 2**20)), "c.toml", "a configuration has at most"),
    "nested arrays": ("x = " + "[" * 5000 + "]" * 5000, "c.toml", "nested too deeply"),
    "nested tables": ("x = " + "{a = " * 3000 + "1" + "}" * 3000, "c.toml"),
    "nested keys": (".".join(["a"] * 3000) + " = 1", "c.toml"),
    "a link in a circle": (lambda p: p.symlink_to(p), "c.toml", "cannot be read"),
    # extends
    "extends nothing": ('extends = "none"\n', "unknown pipeline 'none'"),
    "extends itself": ('extends = "c.toml"\n', "c.toml", "circle"),
    "extends a number": ("extends = 3\n", "c.toml", "expected a pipeline's name or a file"),
    "extends a missing file": ('extends = "x.toml"\n', "x.toml", "cannot be read"),
    "extends a folder": ('extends = "../home.toml"\n', "home.toml", "cannot be read"),
    # keys and tables
    "unknown key at the top": (HEAD + "phase = 3\n", "c.toml:2", "did you mean 'phases'"),
    "unknown key of the run": (HEAD + "[run]\nseeed = 3\n", "c.toml:3", "did you mean 'seed'"),
    "unknown key of a phase": (phase("optimiser = 3"), "c.toml:3", "did you mean 'optimizer'"),
    "unknown key of an adapter": (phase("adapter = {rnak = 3}"), "c.toml:3", "did you mean 'rank'"),
    "several at once": (HEAD + "[run]\nseed = -1\nx = 2\n", "c.toml:3", "c.toml:4", "2 errors"),
    "run no table": (HEAD + "run = 3\n", "run", "expected a table"),
    "phases no table": (HEAD + "phases = 3\n", "phases", "expected"),
    "a phase no table": (HEAD + "[phases]\nmcq = 3\n", "phases.mcq", "expected a table, or false"),
    "base no table": (HEAD + 'base = "reference"\n', "base", "expected a table"),
    "defaults no table": (HEAD + "defaults = [1]\n", "expected"),
    "plugins no table": (HEAD + "plugins = 1\n", "plugins", "expected a table"),
    "no phases": (BASE, "phases", "expected at least one phase"),
    "all phases left out": (HEAD + "[phases]\nplain_text = false\nmedical_dictionary = false\nmcq = false\n", "at least one"),
    "no base": (OWN.replace(BASE, ""), "base", "missing"),
    "no type of base": (OWN.replace('type = "reference"\n', ""), "base.type", "known: hf, reference"),
    "no optimizer": (OWN.replace('optimizer = {type = "sgd"}\n', ""), "phases.one.optimizer", "missing"),
    "a name with ../": (HEAD + 'name = "../../x"\n', "pipeline name '../../x'", "expected 1 to 64 letters"),
    "a name with a line break": (HEAD + 'name = "a\\nb"\n', "pipeline name", "expected 1 to 64 letters"),
    "a name with a right-to-left mark": (HEAD + 'name = "a\\u202eb"\n', "pipeline name", "expected 1 to 64 letters"),
    "a name of nothing": (HEAD + 'name = ""\n', "pipeline name ''", "expected 1 to 64 letters"),
    "a phase named ../": (HEAD + '[phases."../up"]\n', "../up", "expected 1 to 64 letters"),
    "a phase named with a slash": (HEAD + '[phases."a/b"]\n', "a/b", "expected 1 to 64 letters"),
    "a phase with a great name": (HEAD + f"[phases.{'x' * 65}]\n", "expected 1 to 64 letters"),
    "a phase with a mark": (HEAD + '[phases."\\u202ex"]\n', "expected 1 to 64 letters"),
    "a phase of nothing": (HEAD + '[phases.""]\n', "expected 1 to 64 letters"),
    "a phase that uses none": (HEAD + '[phases.x]\nuse = "none"\n', "unknown phase 'none'"),
    "after no phase": (HEAD + '[phases.x]\nafter = "mqc"\n', "no such phase", "did you mean 'mcq'"),
    "phases in a circle": (
        HEAD + '[phases.x]\nafter = "y"\n[phases.y]\nafter = "x"\n', "cycle",
    ),
    "a title of a number": (HEAD + "title = [1]\n", "title", "expected"),
    # values
    "rank zero": (phase("adapter = {rank = 0}"), "c.toml:3", "phases.mcq.adapter.rank", "expected a number >= 1, got 0"),
    "rank of text": (phase('adapter = {rank = "8"}'), "c.toml:3", "expected an integer, got '8'"),
    "rank and a half": (phase("adapter = {rank = 1.5}"), "expected an integer, got 1.5"),
    "rank true": (phase("adapter = {rank = true}"), "expected an integer, got True"),
    "alpha nan": (phase("adapter = {alpha = nan}"), "phases.mcq.adapter.alpha", "got nan"),
    "alpha inf": (phase("adapter = {alpha = inf}"), "phases.mcq.adapter.alpha"),
    "dropout one": (phase("adapter = {dropout = 1.0}"), "expected a number from 0 to 0.999"),
    "targets that match nothing": (phase('adapter = {targets = ["lyaer1"]}'), "lyaer1", "did you mean 'layer1'"),
    "targets that are a number": (phase("adapter = {targets = 3}"), "expected an array, each a string"),
    "targets with a broken expression": (phase('adapter = {targets = ["re:("]}'), "re:("),
    "targets of nothing": (phase("adapter = {targets = []}"), "targets"),
    "adapter unknown": (phase('adapter = {type = "lroa"}'), "unknown adapter type 'lroa'", "did you mean 'lora'"),
    "adapter no table": (phase('adapter = "lora"'), "phases.mcq.adapter", "expected a table"),
    "type a number": (phase("adapter = {type = 3}"), "phases.mcq.adapter.type"),
    "lr zero": (phase("optimizer = {lr = 0}"), "phases.mcq.optimizer.lr", "expected a number > 0"),
    "lr negative": (phase("optimizer = {lr = -1e-3}"), "expected a number > 0, got -0.001"),
    "lr nan": (phase("optimizer = {lr = nan}"), "phases.mcq.optimizer.lr", "nan"),
    "lr inf": (phase("optimizer = {lr = inf}"), "phases.mcq.optimizer.lr", "expected a number, got inf"),
    "lr of text": (phase('optimizer = {lr = "1e-3"}'), "expected a number, got '1e-3'"),
    "lr a date": (phase("optimizer = {lr = 2024-01-01}"), "expected a number"),
    "betas of one": (phase('optimizer = {type = "adamw", betas = [0.9]}'), "betas"),
    "betas of one and more": (phase('optimizer = {type = "adamw", betas = [0.9, 1.0]}'), "betas", "below 1"),
    "nesterov alone": (phase("optimizer = {nesterov = true}"), "nesterov: needs momentum"),
    "schedule unknown": (phase('optimizer = {schedule = "cosin"}'), "did you mean 'cosine'"),
    "optimizer unknown": (phase('optimizer = {type = "adam"}'), "unknown optimizer type 'adam'", "did you mean 'adamw'"),
    "steps zero": (phase("train = {steps = 0}"), "phases.mcq.train.steps", "expected a number >= 1"),
    "epochs zero": (phase("train = {epochs = 0}"), "expected a number > 0"),
    "epochs inf": (phase("train = {epochs = inf}"), "phases.mcq.train.epochs"),
    "batch zero": (phase("train = {batch_size = 0}"), "expected a number >= 1"),
    "micro-batch above the batch": (phase("train = {micro_batch = 17}"), "train.micro_batch", "at most train.batch_size"),
    "log never": (phase("train = {log_every = 0}"), "expected a number >= 1"),
    "keep the worst": (phase('train = {keep = "worst"}'), "expected one of last, best"),
    "minutes negative": (phase("train = {checkpoint_minutes = -1}"), "expected a number > 0"),
    "gate unknown": (phase("gate = {max-dorp = {}}"), "did you mean 'max-drop'"),
    "gate with a wrong share": (phase("gate = {keep-base = {share = 97}}"), "expected a number from 0 to 1"),
    "gate no table": (phase("gate = 3"), "expected tables"),
    "gate a list": (phase('gate = ["max-drop"]'), "expected tables"),
    "recovery unknown": (phase("recover = {pray = {}}"), "unknown recover type 'pray'"),
    "a recovery's method unknown": (phase("recover = {train-on = {retention = {nothing = {}}}}"), "nothing"),
    "retention unknown": (phase("retention = {drift-gaurd = {}}"), "did you mean 'drift-guard'"),
    "merge unknown": (phase('merge = {type = "average"}'), "unknown merge type 'average'"),
    "split unknown": (phase('evaluate = {split = "train"}'), "expected one of dev, test"),
    "data unknown": (phase('data = {type = "teachr"}'), "did you mean 'teacher'"),
    "data of size zero": (phase("data = {size = 0}"), "expected a number >= 1"),
    "data with one item": (phase("data = {items = 1}"), "expected a number >= 2"),
    "two probes of one name": (phase('data = {probe = "plain_text"}'), "plain_text", "give each its own"),
    "widths of one": (HEAD + "[base]\nwidths = [3]\n", "widths: expected two or more"),
    "widths of zero": (HEAD + "[base]\nwidths = [3, 0, 3]\n", "widths: expected two or more integers >= 1"),
    "widths of text": (HEAD + '[base]\nwidths = ["a"]\n', "base.widths: expected an integer, got 'a'"),
    "widths beyond memory": (HEAD + "[base]\nwidths = [64, 9000000000000, 32]\n", "out of memory"),
    "an integer beyond any": (HEAD + f"[run]\nseed = {'9' * 400}\n", "c.toml:3", "run.seed", "400 digits"),
    "an integer beyond reading": (HEAD + f"[run]\nseed = {'9' * 5000}\n", "c.toml", "not valid TOML"),
    "a number beyond any": (phase(f"optimizer = {{lr = {'9' * 400}}}"), "phases.mcq.optimizer.lr", "400 digits"),
    "activation unknown": (HEAD + '[base]\nactivation = "gleu"\n', "did you mean 'gelu'"),
    "threads negative": (HEAD + "[run]\nthreads = -1\n", "expected a number >= 0"),
    "undo nowhere": (HEAD + '[run]\nundo = "cloud"\n', "expected one of memory, disk"),
    "a device in the file": (HEAD + '[run]\ndevice = "cuda:99"\n', "device 'cuda:99'"),
    "plugins without a number": (HEAD + "[plugins]\nwithout = 3\n", "plugins.without", "expected an array"),
    "plugins without an unknown": (HEAD + '[plugins]\nwithout = ["x"]\n', "no such plugin"),
    "plugins that prefer nobody": (HEAD + '[plugins]\nprefer = {"adapter:lora" = "x"}\n', "adapter type 'lora'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_configuration(answered, name):
    """Each is answered with file, line, key, what was expected and what was found."""
    content, *words = CASES[name]
    answered(
        ["run", "--config", "c.toml", "--out", "out", "--quiet"],
        *words,
        files={"c.toml": content},
    )
