"""Find, check and load plugins: entry point by entry point, so that one broken plugin is named and
does not hide the others.

A plugin that fails to load stops only the runs that use it: those whose configuration names a type
or whose data names a metric that nobody else registered, and every run where its package declares
that it acts unasked (an entry point of the same name in the group ``mgk.always``).
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pluggy
from attrs import define, evolve, field, frozen

from mgk_core.config.local_plugins import add_from_environment
from mgk_core.contract import hookspecs
from mgk_core.contract.errors import InputError, PluginError, nearest
from mgk_core.contract.specs import Slot, SpecRegistry
from mgk_core.host.blame import OWN, Directory, PluginInfo
from mgk_core.host.guard import MARK, called_with, guarded

GROUP = "mgk.plugins"
ALWAYS = "mgk.always"
"""Entry-point group in which a package declares that a plugin acts in every run."""


@define(eq=False, kw_only=True)
class Plugins(Directory):
    """The loaded plugins: pluggy's manager, the registry of types, and who is who."""

    manager: pluggy.PluginManager
    registry: SpecRegistry
    objects: dict[str, Any] = field(factory=dict)

    @property
    def broken(self) -> list[PluginInfo]:
        """Plugins that are installed and could not be loaded."""
        return [i for i in self.infos if i.error is not None]

    def require_usable(self) -> None:
        """Raise `PluginError` where a plugin that acts in every run failed to load.

        Any other one that failed is named by `warnings`, and where its type is asked for.
        """
        for info in self.broken:
            if info.always:
                raise PluginError(
                    info.name,
                    f"{_failure(info)}; it acts in every run, so {_ways(info)}",
                )

    def warnings(self) -> Iterator[str]:
        """Yield what is wrong with installed plugins although a run can do without."""
        for info in self.infos:
            if info.error is not None:
                clash = sum(other.name == info.name for other in self.infos) > 1
                ways = "uninstall one of them" if clash else _ways(info)
                yield f"{_failure(info)}; this run does not use it; {ways}"
            yield from info.warnings

    def owner(self, slot: Slot, type_: str) -> str:
        """Return the plugin that registered a type; `InputError` where none did, or several."""
        return self.registry.find(slot, type_).plugin

    def call_order(self, hook: str, owner: str | None = None) -> list[str]:
        """Return the plugins whose function of a hook is called, in that order.

        Wrappers come first, then ``tryfirst``, then from the last name of the alphabet to the first,
        then ``trylast``. owner: where the hook is called for that plugin alone.
        """
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        return [
            i.plugin_name
            for i in reversed(implementations)
            if owner is None or i.wrapper or i.plugin_name == owner
        ]

    def call(
        self, hook: str, arguments: Mapping[str, Any], owner: str | None = None
    ) -> Any:
        """Call a hook for every plugin, or for its owner alone with the wrappers of all."""
        caller = getattr(self.manager.hook, hook)
        if owner is not None:
            impls = caller.get_hookimpls()
            others = [
                i.plugin for i in impls if not i.wrapper and i.plugin_name != owner
            ]
            caller = self.manager.subset_hook_caller(hook, remove_plugins=others)
        with called_with(arguments):
            return caller(**arguments)


def _failure(info: PluginInfo) -> str:
    return f"plugin {info} failed to load: {info.error}"


def _ways(info: PluginInfo) -> str:
    return f"fix or uninstall it, or use --without-plugin {info.name}"


@frozen
class _Found:
    """A plugin to load: its name, where it is from, and what imports it."""

    info: PluginInfo
    load: Callable[[], Any]


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
    add_from_environment()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager=manager, registry=SpecRegistry(prefer))
    left_out = set(without)
    everyone = [*_installed(), *_extra(extra)]
    names = [found.info.name for found in everyone]
    for name in sorted(left_out):
        if name not in names:
            raise InputError(
                f"--without-plugin {name}: no such plugin{nearest(name, names)}"
            )
    for found in everyone:
        if found.info.name in left_out:
            plugins.infos.append(evolve(found.info, left_out=True, error=None))
        else:
            plugins.infos.append(_loaded(plugins, found))
    plugins.registry.unavailable += [f"{i}: {i.error}" for i in plugins.broken]
    if os.environ.get("MGK_TRACE_HOOKS"):
        _trace(manager)
    return plugins


def _installed() -> Iterator[_Found]:
    """Yield every entry point of the group, sorted by name; of one name that is taken twice, all."""
    always = {p.name for p in importlib.metadata.entry_points(group=ALWAYS)}
    by_name: dict[str, list[_Found]] = defaultdict(list)
    for point in importlib.metadata.entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else "?"
        version = point.dist.version if point.dist else ""
        info = PluginInfo(
            point.name, distribution, version, point.value, always=point.name in always
        )
        by_name[point.name].append(_Found(info, point.load))
    for _, same in sorted(by_name.items()):
        yield from same if len(same) == 1 else _told_apart(same)


def _told_apart(same: Sequence[_Found]) -> Iterator[_Found]:
    """Let mgk's own plugin keep a name that is taken twice; any other is refused, and both are named."""
    for found in sorted(same, key=lambda f: (f.info.distribution, f.info.version)):
        rivals = " and ".join(
            f"{f.info.distribution} {f.info.version}" for f in same if f is not found
        )
        if found.info.distribution == OWN:
            yield found
            continue
        error = f"its name {found.info.name!r} is also that of a plugin of {rivals}"
        yield evolve(found, info=evolve(found.info, error=error))


def _extra(extra: Iterable[tuple[str, Any]]) -> Iterator[_Found]:
    for name, plugin in extra:
        module = getattr(plugin, "__name__", type(plugin).__name__)
        info = PluginInfo(name, "(not installed)", "", module)
        yield _Found(info, functools.partial(_same, plugin))


def _same(plugin: Any) -> Any:
    return plugin


def _loaded(plugins: Plugins, found: _Found) -> PluginInfo:
    """Load one plugin; return what is known of it, an error in place of an exception."""
    info, name = found.info, found.info.name
    if info.error is not None:
        return info
    try:
        plugin = found.load()
        _check(name, plugin)
        stand_in = guarded(plugin, name, plugins)
        plugins.manager.register(stand_in, name)
        plugins.manager.check_pending()
        _register_specs(plugins, name, plugin)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may raise anything at import
        if plugins.manager.has_plugin(name):
            plugins.manager.unregister(name=name)
        return evolve(info, error=_reason(error))
    plugins.objects[name] = plugin
    hooks = tuple(h for h in hookspecs.spec_names() if hasattr(stand_in, h))
    return evolve(info, hooks=hooks, warnings=tuple(_undecorated(info, plugin)))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


def _check(name: str, plugin: Any) -> None:
    """Check what pluggy does not: the API version, and names that look like hooks and are not."""
    version = getattr(plugin, "MGK_API_VERSION", hookspecs.HOOK_API_VERSION)
    if version != hookspecs.HOOK_API_VERSION:
        raise PluginError(
            name,
            f"it is written for hook API {version}, this mgk has {hookspecs.HOOK_API_VERSION};"
            " install a release of the plugin that fits",
        )
    known = hookspecs.spec_names()
    for attribute in dir(plugin):
        if not attribute.startswith("mgk_") or attribute in known:
            continue
        if callable(getattr(plugin, attribute)):
            raise PluginError(
                name,
                f"it implements {attribute!r}, which is not a hook{nearest(attribute, known)}",
            )


def _undecorated(info: PluginInfo, plugin: Any) -> Iterator[str]:
    """Yield a warning for each function that has a hook's name and lacks the decorator."""
    for hook in hookspecs.spec_names():
        function = getattr(plugin, hook, None)
        if callable(function) and not hasattr(function, MARK):
            yield (
                f"plugin {info}: {hook} has no @hookimpl, so it is never called;"
                " decorate it, or rename it"
            )


def _register_specs(plugins: Plugins, name: str, plugin: Any) -> None:
    """Call the historic hook for this plugin alone, so that the registry knows who claims."""
    register = getattr(plugin, "mgk_register_specs", None)
    if register is not None and hasattr(register, MARK):
        plugins.registry.plugin = name
        register(registry=plugins.registry)


def _trace(manager: pluggy.PluginManager) -> None:
    """Print each hook call and who is called, in order, to standard error (``MGK_TRACE_HOOKS=1``)."""

    def before(hook: str, impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        names = ", ".join(i.plugin_name for i in reversed(impls)) or "nobody"
        sys.stderr.write(f"hook {hook}: calls: {names}\n")

    def after(
        outcome: Any, hook: str, impls: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        error = outcome.exception
        if error:
            result = f"raised {type(error).__name__}"
        else:
            result = f"returned {type(outcome.get_result()).__name__}"
        sys.stderr.write(f"hook {hook}: {result}\n")

    manager.add_hookcall_monitoring(before, after)
