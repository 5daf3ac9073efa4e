"""Whose fault an error is: the one place that names a plugin for what it raised or returned."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from types import TracebackType

import torch
from attrs import define, field, frozen

from mgk_core.contract.errors import MgkError, PluginError
from mgk_core.model.device import is_out_of_memory

OWN = "mgk"
"""Distribution of the built-in plugins."""


@frozen
class PluginInfo:
    """One plugin as found.

    error: why it could not be loaded, None where it was. always: its package declares that it acts
    in every run. warnings: what is probably not meant, such as a hook without its decorator.
    """

    name: str
    distribution: str
    version: str
    module: str
    hooks: tuple[str, ...] = ()
    error: str | None = None
    left_out: bool = False
    always: bool = False
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name!r} ({f'{self.distribution} {self.version}'.strip()})"


@frozen(order=True)
class Ran:
    """A plugin whose code ran, and the hook that it was or came from."""

    plugin: str
    hook: str


@define(eq=False)
class Directory:
    """Which plugin is which, by name and by the package of its code.

    ran: whose code ran, in order; whoever compares weights empties it. standing: who made an object
    that runs between hooks, such as an optimizer.
    """

    infos: list[PluginInfo] = field(factory=list)
    ran: dict[Ran, None] = field(factory=dict)
    standing: dict[Ran, None] = field(factory=dict)

    def suspects(self) -> list[Ran]:
        """Return whose code may have run since the last comparison; mgk's own plugins come last."""
        standing = [r for r in self.standing if not self.is_own(r.plugin)]
        found = dict.fromkeys([*self.ran, *standing])
        return sorted(found, key=lambda ran: self.is_own(ran.plugin))

    def describe(self, name: str) -> str:
        """Return ``'name' (distribution version)`` for messages."""
        same = [info for info in self.infos if info.name == name]
        same.sort(
            key=lambda info: info.error is not None
        )  # of one name, the one that was loaded
        return str(same[0]) if same else repr(name)

    def fault(self, plugins: Sequence[str], hook: str, message: str) -> PluginError:
        """Return the error for what one of some plugins did in a hook; mgk's own are named last."""
        suspects = sorted(plugins, key=self.is_own)
        who = " or ".join(self.describe(plugin) for plugin in suspects)
        return PluginError(suspects[0], f"plugin {who}, in {hook}: {message}", hook)

    def is_own(self, name: str) -> bool:
        """Whether a plugin is part of mgk's own distribution."""
        return any(
            i.name == name and i.distribution == OWN and i.error is None
            for i in self.infos
        )

    def plugin_of(self, code: object) -> str | None:
        """Return the plugin that is not mgk's own and whose package a function or class is from."""
        package = _package(str(getattr(code, "__module__", None) or ""))
        for info in self.infos:
            if _package(info.module) == package and not self.is_own(info.name):
                return info.name
        return None

    def owner_of(self, error: BaseException) -> str | None:
        """Return the plugin whose code is innermost in an error's traceback; None: no plugin's."""
        packages = {_package(i.module): i.name for i in self.infos if not i.left_out}
        owner = None
        for frame, _ in traceback.walk_tb(error.__traceback__):
            owner = packages.get(
                _package(str(frame.f_globals.get("__name__", ""))), owner
            )
        return owner

    def blamed(self, error: BaseException) -> PluginError | None:
        """Return the error for what a plugin's adapter, bundle or optimizer raised between hooks.

        None where no plugin's code took part: then it is an internal error of mgk.
        """
        plugin = self.owner_of(error)
        if plugin is None:
            return None
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.name} ({frame.filename}:{frame.lineno})"
        return PluginError(
            plugin, f"plugin {self.describe(plugin)} raised in {place}: {_said(error)}"
        )


def _package(module: str) -> str:
    return module.partition(":")[0].partition(".")[0]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


_MAKES_WHAT_RUNS = ("mgk_build_model", "mgk_attach_adapter", "mgk_make_optimizer")
"""Hooks whose answers run later, where no hook is called."""


@frozen
class Process:
    """Settings of the process that a plugin could leave changed for all code after it."""

    gradients: bool
    dtype: torch.dtype

    @classmethod
    def now(cls) -> Process:
        """Return the settings as they are."""
        return cls(torch.is_grad_enabled(), torch.get_default_dtype())

    def changed(self) -> str | None:
        """Return what has changed since, in words; None: nothing."""
        if torch.is_grad_enabled() != self.gradients:
            return f"torch's gradients switched {'off' if self.gradients else 'on'}"
        if torch.get_default_dtype() != self.dtype:
            return f"torch's default dtype set to {torch.get_default_dtype()}"
        return None

    def restore(self) -> None:
        """Set everything back."""
        torch.set_grad_enabled(self.gradients)
        torch.set_default_dtype(self.dtype)


@frozen(eq=False)
class Call:
    """A piece of one plugin's code that mgk calls; a context manager around each call of it.

    what: how a message names it: ``mgk_gate``, or ``loss term 'replay'``. during: it is the first half
    of a wrapper, which may hold a context manager open while the others are called.
    """

    directory: Directory
    plugin: str
    hook: str
    what: str
    during: bool = False
    _before: list[Process] = field(factory=list, init=False)

    def __enter__(self) -> None:
        ran = Ran(self.plugin, self.hook)
        self.directory.ran[ran] = None
        if self.hook in _MAKES_WHAT_RUNS:
            self.directory.standing[ran] = None
        self._before.append(Process.now())

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the plugin's name on what it raised. Errors of mgk's own kind already include what to do."""
        before = self._before.pop()
        if error is None:
            self._check(before)
        if error is None or not isinstance(error, (Exception, SystemExit)):
            return
        if isinstance(error, MgkError) or is_out_of_memory(error):
            return
        raise PluginError(self.plugin, self._raised(error), self.hook) from error

    def _check(self, before: Process) -> None:
        """Refuse a change to what all later code runs under; it is undone first."""
        changed = before.changed()
        if changed is None or self.during:
            return
        before.restore()
        who = f"plugin {self.directory.describe(self.plugin)}"
        message = f"{who}: {self.what} left {changed}; restore what was set before"
        raise PluginError(self.plugin, message, self.hook)

    def _raised(self, error: BaseException) -> str:
        inner = self.directory.owner_of(error)
        within = ""
        if inner is not None and inner != self.plugin:
            within = f", inside plugin {self.directory.describe(inner)}"
        return f"plugin {self.directory.describe(self.plugin)} raised in {self.what}{within}: {_said(error)}"

    def refuse(self, returned: str) -> PluginError:
        """Return the error for an answer: ``returned`` describes what came and what was expected."""
        who = f"plugin {self.directory.describe(self.plugin)}"
        message = f"{who}: {self.what} returned {returned}; see {self.hook} in the hooks reference"
        return PluginError(self.plugin, message, self.hook)

    def require(self, problem: str | None) -> None:
        """Raise where there is something wrong with an answer."""
        if problem is not None:
            raise self.refuse(problem)
