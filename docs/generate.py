"""Write the generated part of the reference pages: all below their marker line.

    python docs/generate.py            write the pages
    python docs/generate.py --check    exit 1 where one is out of date, and name it

Everything above the marker is written by hand and kept.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click

from mgk_core.contract import hookspecs, settings
from mgk_core.contract.events import EVENTS
from mgk_core.host.manager import Plugins, load_plugins
from mgk_core.contract.settings import SLOTS
from mgk_core.contract.specs import Registered

REFERENCE = Path(__file__).parent / "reference"
MARKER = "<!-- generated below this line by docs/generate.py -->"
TABLES = {
    "run": (settings.RunSettings, "Of the whole run."),
    "train": (settings.TrainSettings, "Of each phase: `defaults.train` or `phases.NAME.train`."),
    "evaluate": (settings.EvaluateSettings, "Of each phase: `defaults.evaluate` or `phases.NAME.evaluate`."),
    "plugins": (settings.PluginSettings, "Of the whole run."),
}
PACKAGES = ("mgk_core.contract", "mgk_core.model")
"""Rooms whose modules are public: each lists its public names in ``__all__``."""


def prose(text: str) -> str:
    """Turn a docstring's markup into Markdown: double backticks into single ones."""
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Make text fit a table's cell."""
    return prose(" ".join(text.split())).replace("|", "\\|")


# hooks


def hooks_page(plugins: Plugins) -> str:
    """Every hook in the order of its file, by family."""
    families = _families()
    lines = []
    for name in hookspecs.spec_names():
        if name in families:
            lines.append(f"## {families[name].capitalize()}\n")
        lines.append(_hook(name, plugins))
    return "\n".join(lines)


def _families() -> dict[str, str]:
    """Return first hook of a family → the family, from the comments between them."""
    source = inspect.getsource(hookspecs)
    found = {"mgk_register_specs": "everything"}
    for match in re.finditer(r"^# ([a-z ]+)$\s+@\w+.*\s+def (mgk_\w+)", source, re.MULTILINE):
        found[match[2]] = match[1]
    return found


def _hook(name: str, plugins: Plugins) -> str:
    function = getattr(hookspecs, name)
    options = function.mgk_spec
    slot = hookspecs.slot_of(name)
    kind = "historic" if options["historic"] else "all" if slot is None else f"firstresult, of the {slot}'s plugin"
    text, fields = _fields(function)
    own = [i.name for i in plugins.infos if name in i.hooks and i.distribution == "mgk"]
    implemented = ", ".join(f"`{n}`" for n in own) or "none; it is for yours"
    return "\n".join([
        f"### {name}\n", f"```py\n{_def(name, function)}\n```\n", text, "",
        *(f"- `{k}`: {v}" for k, v in fields), "", f"Kind: {kind}. Implemented by: {implemented}.\n",
    ])  # fmt: skip


def _def(name: str, function: Callable[..., Any]) -> str:
    """Return the line that defines a function, one argument a line where it is long."""
    signature = inspect.signature(function)
    arguments = str(signature.replace(return_annotation=inspect.Signature.empty)).replace("'", "")
    arguments = re.sub(r"<function (?:\S+\.)?(\w+) at 0x\w+>", r"\1", arguments)
    arguments = re.sub(r"<function \S*<lambda> at 0x\w+>", "…", arguments)
    returns = "" if signature.return_annotation is inspect.Signature.empty else f" -> {signature.return_annotation}"
    line = f"def {name}{arguments}{returns}"
    if len(line) <= 110:
        return line
    inner = arguments[1:-1]
    parts = re.split(r", (?=\w+:|\*)", inner)
    return "\n".join([f"def {name}(", *(f"    {p}," for p in parts), f"){returns}"])


def _fields(function: Callable[..., Any]) -> tuple[str, list[tuple[str, str]]]:
    """Split a docstring into its text and its (name, description) fields."""
    text = inspect.getdoc(function) or ""
    body, *parts = re.split(r"^(?::param |:return|:raises |\.\. version)", text, flags=re.MULTILINE)
    kinds = re.findall(r"^(?::param |:return|:raises |\.\. version)", text, flags=re.MULTILINE)
    fields = []
    for kind, part in zip(kinds, parts, strict=True):
        name, _, said = part.partition(":") if kind != ".. version" else part.partition("::")
        words = {":return": "returns", ".. version": f"version {name}"}
        label = words.get(kind, f"raises {name}" if kind == ":raises " else name)
        fields.append((label, prose(" ".join(said.split()))))
    return prose(body.strip()), fields


# configuration


def configuration_page(plugins: Plugins) -> str:
    """Every table and every registered type, key by key."""
    lines = ["## Tables of the core\n"]
    for name, (cls, where) in TABLES.items():
        lines += [f"### {name}\n", f"{prose(inspect.getdoc(cls) or '')} {where}\n", _keys(cls)]
    for slot in SLOTS:
        claims = sorted((c for c in plugins.registry if c.slot == slot), key=lambda c: c.type)
        if not claims:
            continue
        lines.append(f"## {slot}\n")
        lines += [_claim(claim) for claim in claims]
    return "\n".join(lines)


def _claim(claim: Registered) -> str:
    text = prose(inspect.getdoc(claim.cls) or "")
    return f'### {claim.slot}: "{claim.type}"\n\n{text} From plugin `{claim.plugin}`.\n\n{_keys(claim.cls)}'


def _keys(cls: type[Any]) -> str:
    hints = typing.get_type_hints(cls)
    rows = [
        f"| `{a.name}` | {_expected(a, hints[a.name])} | {_default(a)} | {cell(a.metadata.get('help', ''))} |"
        for a in attrs.fields(cls)
        if a.name != "type"
    ]
    if not rows:
        return "No keys.\n"
    return "\n".join(["| key | expected | default | what |", "|---|---|---|---|", *rows, ""])


def _expected(attribute: attrs.Attribute[Any], hint: Any) -> str:
    """Return the type, narrowed by the message of the validator for a value that cannot be right."""
    if attribute.validator is None:
        return _type(hint)
    try:
        attribute.validator(None, attribute, float("nan"))
    except ValueError as error:
        said = re.match(r"expected (?:a number |one of )?(.*?), got nan", str(error))
        if said is not None:
            whole = _type(hint) if "number" in str(error) else "one of"
            return cell(f"{whole} {said[1]}".replace(">=", "≥"))
    return _type(hint)


def _type(hint: Any) -> str:
    names = {int: "integer", float: "number", str: "string", bool: "true / false", type(None): ""}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"array of {_type(arguments[0])}s"
    if origin is dict:
        return f"table of {_type(arguments[1])}s" if arguments[1] is not Any else "table"
    options = [_type(a) for a in arguments if a is not type(None)]
    return " or ".join(options) if options else cell(str(hint))


def _default(attribute: attrs.Attribute[Any]) -> str:
    value = attribute.default
    if value is attrs.NOTHING:
        return "**required**"
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        value = value.factory()
        if not value:
            return "empty"
    if value is None:
        return "none"
    words = {True: "true", False: "false"}
    text = words[value] if isinstance(value, bool) else repr(value).replace("'", '"')
    if isinstance(value, tuple):
        text = "[" + ", ".join(repr(v).replace("'", '"') for v in value) + "]"
    return f"`{text}`".replace("|", "\\|")


# command line


def cli_page(_: Plugins) -> str:
    """The help of every command of mgk's own."""
    from mgk_cli.main import COMMANDS, cli

    lines = [_help("mgk", cli)]
    with click.Context(cli, info_name="mgk", **cli.context_settings) as parent:
        for name in COMMANDS:
            command = cli.get_command(parent, name)
            assert command is not None, name
            lines.append(_help(f"mgk {name}", command, parent))
    return "\n".join(lines)


def _help(title: str, command: click.Command, parent: click.Context | None = None) -> str:
    settings_ = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    name = title.rpartition(" ")[2]
    with click.Context(command, info_name=name, parent=parent, **settings_) as ctx:
        text = command.get_help(ctx)
    return f"## {title}\n\n```text\n{click.unstyle(text).rstrip()}\n```\n"


# Python


def api_page(_: Plugins) -> str:
    """Signature and docstring of what is public in Python."""
    lines = []
    for module in public_modules():
        home = importlib.import_module(module)
        lines.append(f"## {module}\n\n{prose(_first_sentence(home.__doc__ or ''))}\n")
        lines += [_object(home, name) for name in home.__all__ if name != "__version__"]
    return "\n".join(lines)


def public_modules() -> list[str]:
    """Return the modules whose names are public, the front door first."""
    found = ["mgk"]
    for package in PACKAGES:
        home = importlib.import_module(package)
        found += [f"{package}.{m.name}" for m in pkgutil.iter_modules(home.__path__)]
    return [*found, "mgk_core.testing"]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", inspect.cleandoc(text), maxsplit=1)[0].replace("\n", " ")


def _object(home: ModuleType, name: str) -> str:
    value = getattr(home, name)
    if value is Any or not (inspect.isclass(value) or inspect.isfunction(value)):
        return _constant(home, name)
    text, fields = _fields(value)
    lines = [f"### {name}\n", f"```py\n{_signature(name, value)}\n```\n", text, ""]
    lines += [f"- `{k}`: {v}" for k, v in fields]
    if inspect.isclass(value):
        lines += list(_members(value))
    return "\n".join([*lines, ""])


def _constant(home: ModuleType, name: str) -> str:
    """Return an alias, a number or an object with the expression that makes it and the string below it."""
    if home.__name__ == "mgk":
        home = importlib.import_module(f"mgk_core.{home._HOME[name]}")
    source = inspect.getsource(home)
    body = ast.parse(source).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or target.id != name:
            continue
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = inspect.cleandoc(after.value.value) if documented else ""
        return f"### {name}\n\n```py\n{ast.get_source_segment(source, node)}\n```\n\n{prose(text)}\n"
    raise ValueError(f"{home.__name__}.{name}: no assignment found")


def _signature(name: str, value: Any) -> str:
    if not inspect.isclass(value):
        return _def(name, value)
    bases = ", ".join(b.__name__ for b in value.__bases__ if b not in (object,))
    head = f"class {name}({bases})" if bases else f"class {name}"
    if attrs.has(value):
        # Not Attribute.type: whoever resolves a class's types changes that for everyone.
        said = {k: v for c in reversed(value.__mro__) for k, v in inspect.get_annotations(c).items()}
        own = [f"    {a.name}: {said[a.name]}" for a in attrs.fields(value) if not a.name.startswith("_")]
        return "\n".join([head + ":", *own]) if own else head
    own = [f"    {k}: {v}" for k, v in inspect.get_annotations(value).items() if not k.startswith("_")]
    return "\n".join([head + ":", *own]) if own else head


def _members(cls: type[Any]) -> Iterator[str]:
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else member
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        shown = name
        if not isinstance(member, property):
            shown = re.sub(r"\(self(, )?", "(", f"{name}{inspect.signature(function)}".replace("'", ""))
        yield f"- `{shown}`: {cell(_fields(function)[0])}"


# architecture

CORE = Path(__file__).parents[1] / "mgk_core"
ROOMS = ("contract", "model", "record", "config", "host", "run", "tools", "testing")


def architecture_page(_: Plugins) -> str:
    """Every module of the core by room, from the ground up, with the first sentence of its docstring."""
    lines = []
    for room in ROOMS:
        lines += [f"### {room}\n", _first_sentence(_docstring(CORE / room / "__init__.py")), "", "| module | what |", "|---|---|"]
        modules = sorted(p for p in (CORE / room).rglob("*.py") if p.name != "__init__.py")
        lines += [f"| `{p.relative_to(CORE / room)}` | {cell(_first_sentence(_docstring(p)))} |" for p in modules]
        lines.append("")
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def events_page(_: Plugins) -> str:
    """Every event and its fields."""
    lines = []
    for name, event in EVENTS.items():
        kept = " *Kept.*" if event.kept else ""
        lines.append(f"## {name}\n\n{event.summary}{kept}\n")
        if event.fields:
            lines.append("| field | meaning |\n|---|---|")
            lines += [f"| `{field}` | {cell(meaning)} |" for field, meaning in event.fields.items()]
            lines.append("")
    return "\n".join(lines)


CONFORMANCE = {
    "Adapters": "adapters", "Merge rules": "rules", "Transforms and rules that change deltas": "transforms",
    "Optimizers": "optimizers", "Gates": "gates", "Recoveries": "recoveries", "Retention methods and loss terms": "retention", "Losses": "objectives",
    "Observers": "observers", "Metrics": "probes", "Data readers": "readers", "Language models": "models",
}


def conformance_page(_: Plugins) -> str:
    """Every conformance test by kind, with the sentence that its function begins with."""
    lines = []
    for title, module in CONFORMANCE.items():
        lines.append(f"## {title}\n\n| test | what it asks |\n|---|---|")
        tests = importlib.import_module(f"mgk_core.testing.{module}").LAWS
        lines += [f"| {t.name} | {cell(t.says)} |" for t in tests]
        lines.append("")
    return "\n".join(lines)


HOSTILE = Path(__file__).parents[1] / "tests/faults/hostile.py"


def hostile_page(_: Plugins) -> str:
    """Every plugin that the tests run to see it caught."""
    table = runpy.run_path(str(HOSTILE))
    lines = []
    for title, key in (("Plugins that once did harm", "CASES"), ("Plugins written to do harm", "MORE")):
        lines.append(f"## {title}\n\n| what it does | when it is caught | what the message has in it |\n|---|---|---|")
        for case in table[key]:
            said = f"`{case.said}`" if case.said else "nothing: the run ends as it does without it"
            lines.append(f"| {cell(case.does)} | {cell(case.when)} | {cell(said)} |")
        lines.append("")
    return "\n".join(lines)


PAGES: dict[str, Callable[[Plugins], str]] = {
    "conformance.md": conformance_page,
    "events.md": events_page,
    "hostile-plugins.md": hostile_page,
    "../explanation/architecture.md": architecture_page,
    "hooks.md": hooks_page,
    "configuration.md": configuration_page,
    "cli.md": cli_page,
    "python-api.md": api_page,
}


def render(name: str) -> str:
    """Return the whole page: what was written by hand, then what is generated."""
    plugins = load_plugins()
    foreign = [i.name for i in plugins.infos if i.distribution != "mgk"]
    if foreign:
        plugins = load_plugins(without=foreign)
    if plugins.broken:
        raise SystemExit(f"a plugin of mgk failed to load: {plugins.broken[0]}: {plugins.broken[0].error}")
    by_hand = (REFERENCE / name).read_text(encoding="utf-8").partition(MARKER)[0]
    text = f"{by_hand}{MARKER}\n\n{PAGES[name](plugins).rstrip()}\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def main() -> int:
    """Write the pages, or check them."""
    stale = [n for n in PAGES if render(n) != (REFERENCE / n).read_text(encoding="utf-8")]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{REFERENCE / name}: out of date; run: python docs/generate.py", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (REFERENCE / name).write_text(render(name), encoding="utf-8")
        print(REFERENCE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
