"""The group of commands: light help, nearest names, exit codes, errors in words."""

import os
import re
import resource
import subprocess
import sys

import click
import pytest

from mgk_cli.lazy import GROUP
from mgk_cli.main import COMMANDS, cli

NAMES = [*COMMANDS]


def test_help_lists_every_command_and_imports_no_torch():
    """The whole help is printed without torch, attrs, rich or any plugin in the process."""
    code = (
        "import sys; from mgk_cli.main import invoke; code = invoke(['--help']);"
        "heavy = {'torch', 'numpy', 'rich', 'attrs', 'transformers', 'mgk_core', 'mgk_lora'} & set(sys.modules);"
        "print(heavy or 'light', code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "light 0"
    assert all(f"  {name}" in done.stdout for name in COMMANDS)


def test_help_costs_less_than_three_times_its_libraries():
    """Processor time of a cold process beside one that loads click and lists the entry points, interleaved.

    A ratio, since machines differ; the best of five each, since other work disturbs.
    """

    def seconds(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    least = (
        "import click, importlib.metadata as m; m.entry_points(group='mgk.commands')"
    )
    pairs = [
        (seconds("-m", "mgk_cli", "--help"), seconds("-c", least)) for _ in range(5)
    ]
    assert min(p[0] for p in pairs) < 3 * min(p[1] for p in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_every_commands_help_has_an_example_of_itself(mgk, name):
    """``mgk NAME --help`` ends with an example, and its short help is the one of the list."""
    ran = mgk(name, "--help")
    assert ran.code == 0
    assert f"Example: mgk {name}" in ran.out
    command = cli.get_command(click.Context(cli), name)
    assert command.short_help == COMMANDS[name]
    assert command.name == name


def test_version(mgk):
    """``mgk --version`` says the distribution's version."""
    assert mgk("--version").out.startswith("mgk 0.")


def test_an_unknown_command_is_answered_with_the_nearest(mgk):
    """Bad input: exit code 2, one line that says what was meant, no traceback."""
    ran = mgk("rnu")
    assert ran.code == 2
    assert (
        ran.err.splitlines()[0] == "error: no such command 'rnu'; did you mean 'run'?"
    )
    assert "Traceback" not in ran.err


def test_an_unknown_option_is_answered_with_the_nearest(mgk):
    """The same for options, with where to look."""
    ran = mgk("run", "textmodel", "--sed", "3")
    assert ran.code == 2
    assert "no such option '--sed'" in ran.err
    assert "--seed" in ran.err
    assert "see 'mgk run --help'" in ran.err


def test_no_arguments_show_the_help(mgk):
    """Nothing was asked for: the help, and the exit code of bad input."""
    ran = mgk()
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_a_missing_argument_is_named(mgk):
    """click's sentence, in the house's form."""
    ran = mgk("resume")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: missing argument 'RUN'")


def test_debug_shows_the_traceback_wherever_it_stands(mgk, tmp_path):
    """Without --debug no traceback; with it, before or after the command, one."""
    missing = tmp_path / "none"
    assert "Traceback" not in mgk("show", missing).err
    for arguments in (("--debug", "show", missing), ("show", missing, "--debug")):
        ran = mgk(*arguments)
        assert ran.code == 2
        assert "Traceback" in ran.err
        assert ran.err.splitlines()[-1].startswith(
            f"error: {missing}: no such run directory; expected"
        )


def test_an_internal_error_is_reported_as_a_bug(mgk, monkeypatch):
    """An unforeseen exception: exit code 3, called a bug, a traceback with --debug only."""

    def broken(**_):
        raise ZeroDivisionError("no cause")

    monkeypatch.setattr("mgk_core.host.manager.load_plugins", broken)
    ran = mgk("plugins")
    assert ran.code == 3
    first = ran.err.splitlines()[0]
    assert first.startswith("error: internal error")
    assert first.endswith("ZeroDivisionError: no cause")
    assert "--debug" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in mgk("plugins", "--debug").err


def test_out_of_memory_says_what_to_lower(mgk, monkeypatch):
    """An allocation that fails is the machine's: exit code 3, and what to lower."""

    def hungry(**_):
        raise MemoryError

    monkeypatch.setattr("mgk_core.host.manager.load_plugins", hungry)
    ran = mgk("plugins")
    assert ran.code == 3
    assert ran.err.startswith("error: out of memory")
    assert "micro_batch" in ran.err


def test_control_characters_in_what_a_user_gave_are_shown_not_sent(mgk, tmp_path):
    """A name that would colour or turn around the terminal comes back as escapes."""
    ran = mgk("show", f"{tmp_path}/\x1b[31mred\u202e\x07")
    assert ran.code == 2
    assert "\\x1b[31mred\\u202e\\x07" in ran.err
    assert not {"\x1b", "\u202e", "\x07"} & set(ran.err)


def test_a_reader_that_leaves_ends_nothing_badly(finished_run):
    """``mgk show RUN | head -1``: no traceback, no noise, exit code 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "show", str(finished_run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    shown.stdout.close()
    _, err = shown.communicate(timeout=60)
    assert (shown.returncode, err.decode()) == (0, "")


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii_gets_escapes(mgk_process, finished_run):
    """No message dies of an encoding."""
    ran = mgk_process(
        "show",
        finished_run,
        "--all",
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert ran.code == 0
    assert "\\u" in ran.out


@pytest.mark.slow
def test_an_argument_that_is_no_text_is_answered(finished_run):
    """Bytes that are no UTF-8 in a path: an answer, not a crash."""
    done = subprocess.run(
        [sys.executable, "-m", "mgk_cli", "show", os.fsencode(finished_run) + b"\xff\xfe"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"no such run directory" in done.stderr


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("mgk re", {"resume", "rebuild"}),
        ("mgk run text", {"textmodel"}),
        ("mgk show --a", {"--all"}),
    ],
)
def test_the_shell_completes_commands_pipelines_and_options(mgk_process, typed, wanted):
    """As the reference page sets it up: one candidate a line, no error."""
    place = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    ran = mgk_process(env={"_MGK_COMPLETE": "bash_complete", **place})
    assert (ran.code, ran.err) == (0, "")
    assert wanted <= {line.removeprefix("plain,") for line in ran.out.splitlines()}


def test_the_shell_gets_its_completion_script(mgk_process):
    """``eval "$(_MGK_COMPLETE=zsh_source mgk)"`` has something to evaluate."""
    ran = mgk_process(env={"_MGK_COMPLETE": "zsh_source"})
    assert (ran.code, ran.err) == (0, "")
    assert "compdef" in ran.out


@pytest.fixture
def foreign_commands(tmp_path, monkeypatch):
    """Install a distribution with two commands, one of which cannot be imported."""
    (tmp_path / "greeting.py").write_text(
        "import click\n@click.command()\n@click.option('--debug', is_flag=True)\n"
        "def hello(debug):\n    print('hello from afar')\n"
    )
    (tmp_path / "broken_greeting.py").write_text(
        "raise ImportError('half installed')\n"
    )
    info = tmp_path / "mgk_greeting-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mgk-greeting\nVersion: 1.2\n"
    )
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nhello = greeting:hello\nbroken = broken_greeting:command\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("foreign_commands")
def test_commands_of_plugins_are_listed_without_being_imported(mgk):
    """Help names them and their distribution; the broken one does no harm."""
    ran = mgk("--help")
    assert ran.code == 0
    assert "Plugin commands:" in ran.out
    assert re.search(r"report +Write an HTML report of one run", ran.out)
    assert re.search(r"hello +from mgk-greeting 1\.2", ran.out)
    assert "greeting" not in sys.modules


@pytest.mark.usefixtures("foreign_commands")
def test_commands_of_plugins_run(mgk):
    """A plugin's command is a command like any other."""
    ran = mgk("hello")
    assert (ran.code, ran.out) == (0, "hello from afar\n")
    sys.modules.pop("greeting")


@pytest.mark.usefixtures("foreign_commands")
def test_a_broken_command_is_named_with_its_distribution(mgk):
    """Environment fault: exit code 3, whose it is, and why it failed."""
    ran = mgk("broken")
    assert ran.code == 3
    assert "mgk-greeting 1.2" in ran.err
    assert "half installed" in ran.err
    assert "Traceback" not in ran.err
