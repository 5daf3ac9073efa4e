"""Find, check and load plugins: entry point by entry point, so that one broken one is named
and does not hide the others."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pluggy
from attrs import define, field, frozen

from mgk_core.contract import hookspecs
from mgk_core.contract.errors import InputError, PluginError, nearest
from mgk_core.contract.specs import SpecRegistry

GROUP = "mgk.plugins"


@frozen
class PluginInfo:
    """One plugin as found. error: why it could not be loaded, None where it was."""

    name: str
    distribution: str
    version: str
    module: str
    hooks: tuple[str, ...] = ()
    error: str | None = None
    left_out: bool = False


@frozen(order=True)
class Call:
    """A hook that was called, and one plugin that implements it."""

    plugin: str
    hook: str


@define(eq=False)
class Plugins:
    """The loaded plugins: pluggy's manager, the registry of types, and who is who.

    calls: hooks that were called, in order; whoever compares weights empties it.
    """

    manager: pluggy.PluginManager
    registry: SpecRegistry
    infos: list[PluginInfo] = field(factory=list)
    calls: dict[Call, None] = field(factory=dict)

    def record_calls(self) -> None:
        """Note every hook call from here on in `calls`."""

        def before(hook: str, implementations: Sequence[Any], _: Mapping[str, Any]) -> None:
            self.calls |= {Call(i.plugin_name, hook): None for i in implementations}

        self.manager.add_hookcall_monitoring(before, lambda *_: None)

    @property
    def broken(self) -> list[PluginInfo]:
        """Plugins that are installed and could not be loaded."""
        return [i for i in self.infos if i.error is not None]

    def require_whole(self) -> None:
        """Raise `PluginError` where an installed plugin is broken and was not left out."""
        for info in self.broken:
            raise PluginError(
                info.name,
                f"plugin {info.name!r} of {info.distribution} {info.version} is broken: {info.error};"
                f" mend or uninstall it, or go on with --without-plugin {info.name}",
            )

    def owner_of(self, error: BaseException) -> str | None:
        """Return the plugin whose code stands innermost in an error's traceback; None: nobody's does."""
        packages = self._packages()
        owner = None
        for frame, _ in traceback.walk_tb(error.__traceback__):
            package = str(frame.f_globals.get("__name__", "")).split(".", 1)[0]
            owner = packages.get(package, owner)
        return owner

    def owner_of_object(self, thing: object) -> str | None:
        """Return the plugin in whose package an object's class is defined."""
        return self._packages().get(type(thing).__module__.split(".", 1)[0])

    def _packages(self) -> dict[str, str]:
        """Return top-level package → plugin."""
        found = {}
        for info in self.infos:
            if not info.left_out:
                module = info.module.split(":", 1)[0]
                found[module.split(".", 1)[0]] = info.name
        return found

    def describe(self, name: str) -> str:
        """Return ``'name' (distribution version)`` for messages."""
        for info in self.infos:
            if info.name == name:
                return f"{name!r} ({info.distribution} {info.version})"
        return repr(name)


def load_plugins(
    *,
    without: Iterable[str] = (),
    prefer: dict[str, str] | None = None,
    extra: Iterable[tuple[str, Any]] = (),
) -> Plugins:
    """Load every installed plugin, in alphabetical order of their names.

    :param without: names to leave out; an unknown name is an `InputError`
    :param prefer: ``"slot:type"`` → plugin name
    :param extra: (name, object) pairs that take part without being installed (tests, notebooks)
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager, SpecRegistry(prefer))
    left_out = set(without)
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)
    extras = list(extra)
    known = [p.name for p in points] + [name for name, _ in extras]
    for name in sorted(left_out):
        if name not in known:
            raise InputError(f"--without-plugin {name}: no such plugin{nearest(name, known)}")
    for point in points:
        _load(plugins, point.name, point.load, _where(point), left_out)
    for name, plugin in extras:
        module = getattr(plugin, "__name__", type(plugin).__name__)
        _load(
            plugins,
            name,
            functools.partial(_same, plugin),
            ("(not installed)", "", module),
            left_out,
        )
    if os.environ.get("MGK_TRACE_HOOKS"):
        _trace(manager)
    plugins.record_calls()
    return plugins


def _same(plugin: Any) -> Any:
    return plugin


def _where(point: importlib.metadata.EntryPoint) -> tuple[str, str, str]:
    dist = point.dist
    return (dist.name if dist else "?", dist.version if dist else "", point.value)


def _load(
    plugins: Plugins,
    name: str,
    load: Callable[[], Any],
    where: tuple[str, str, str],
    left_out: set[str],
) -> None:
    if name in left_out:
        plugins.infos.append(PluginInfo(name, *where, left_out=True))
        return
    try:
        plugin = load()
        _check(name, plugin)
        hooks = _hooks(plugins.manager, plugin)
        plugins.manager.register(plugin, name)
        plugins.manager.check_pending()
        _register_specs(plugins, name, plugin)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may raise anything at import
        if plugins.manager.has_plugin(name):
            plugins.manager.unregister(name=name)
        plugins.infos.append(PluginInfo(name, *where, error=_reason(error)))
        return
    plugins.infos.append(PluginInfo(name, *where, hooks=hooks))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


def _check(name: str, plugin: Any) -> None:
    """Check what pluggy does not: the API version, and names that look like hooks and are none."""
    version = getattr(plugin, "MGK_API_VERSION", hookspecs.HOOK_API_VERSION)
    if version != hookspecs.HOOK_API_VERSION:
        raise PluginError(
            name,
            f"it is written for hook API {version}, this mgk has {hookspecs.HOOK_API_VERSION};"
            " install a release of the plugin that fits",
        )
    known = hookspecs.spec_names()
    for attribute in dir(plugin):
        if (
            attribute.startswith("mgk_")
            and callable(getattr(plugin, attribute))
            and attribute not in known
        ):
            raise PluginError(
                name, f"it implements {attribute!r}, which is no hook{nearest(attribute, known)}"
            )


def _hooks(manager: pluggy.PluginManager, plugin: Any) -> tuple[str, ...]:
    marked = f"{hookspecs.PROJECT}_impl"
    names = [n for n in hookspecs.spec_names() if hasattr(getattr(plugin, n, None), marked)]
    return tuple(names)


def _register_specs(plugins: Plugins, name: str, plugin: Any) -> None:
    """Call the historic hook for this plugin alone, so that the registry knows who claims."""
    register = getattr(plugin, "mgk_register_specs", None)
    if register is not None:
        plugins.registry.plugin = name
        register(registry=plugins.registry)


def _trace(manager: pluggy.PluginManager) -> None:
    """Print each hook call and who answers, to standard error (``MGK_TRACE_HOOKS=1``)."""

    def before(hook: str, impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        names = ", ".join(i.plugin_name for i in impls) or "nobody"
        sys.stderr.write(f"hook {hook}: asked: {names}\n")

    def after(outcome: Any, hook: str, impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        error = outcome.exception
        said = (
            f"raised {type(error).__name__}"
            if error
            else f"returned {type(outcome.get_result()).__name__}"
        )
        sys.stderr.write(f"hook {hook}: {said}\n")

    manager.add_hookcall_monitoring(before, after)


def as_plugin(module: ModuleType | Any) -> tuple[str, Any]:
    """Return (name, plugin) of a module, for ``extra``."""
    return module.__name__.rpartition(".")[2], module
