"""Finds writes to weights that must not change, and names the plugins that ran in between.

Plugins run in the same process as the model, so nothing can keep one from writing to a weight.
What mgk can do is compare digests at every point of a phase after which a changed weight would be
trained on, committed or saved (`benchmarks/digest_cost.py` measures what that costs), and remember
whose code ran since the last comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field
from torch import nn

from mgk_core.contract.adapter import Adapter, base_state_dict, state_of
from mgk_core.contract.errors import MgkError, PluginError
from mgk_core.host.manager import Plugins
from mgk_core.model.digest import combined_digest, tensor_digests
from mgk_core.run.foreign_code import foreign_code

_NAMED = 3  # weights in a message


@define(eq=False)
class FrozenWeights:
    """The digests that a model's base must have.

    base, residuals, adapter: name → digest; that of the adapter is empty while it may change.
    since: the point of the last comparison. code: places of the model where plugins' code computes
    since the base was built.
    """

    model: nn.Module
    plugins: Plugins
    base: dict[str, str] = field(factory=dict)
    residuals: dict[str, str] = field(factory=dict)
    adapter: dict[str, str] = field(factory=dict)
    since: str = "loading the base"
    code: frozenset[str] = frozenset()
    _before: tuple[dict[str, str], dict[str, str]] = field(factory=lambda: ({}, {}))

    def __attrs_post_init__(self) -> None:
        self.accept(self.since)
        self.code = frozenset(foreign_code(self.model, self.plugins.plugin_of))

    @property
    def digest(self) -> str:
        """Digest of the base as it must be: what the ledger records."""
        return combined_digest(self.base)

    def accept(self, when: str) -> str:
        """Take the weights as they are now; return the base's digest."""
        self._take(tensor_digests(base_state_dict(self.model)), when)
        return self.digest

    def accept_merge(self, adapter: Adapter, when: str) -> str:
        """Take the weights that a merge has written; return the base's digest.

        :raises MgkError: a weight that the adapter does not target was written to
        """
        found = tensor_digests(base_state_dict(self.model))
        if found.keys() == self.base.keys():  # a rule may unpack a quantized base
            targets = adapter.targets()
            wrong = [n for n in _changed(self.base, found) if not _belongs(n, targets)]
            if wrong:
                raise self._error(wrong, when)
        self._before = (self.base, self.residuals)
        self._take(found, when)
        return self.digest

    def expect_undone(self) -> None:
        """Require the digests of before the last merge again."""
        self.base, self.residuals = self._before

    def hold(self, adapter: Adapter) -> None:
        """Require from here on that the adapter does not change either."""
        self.adapter = tensor_digests(adapter.state_dict())

    def check(self, when: str, adapter: Adapter | None = None) -> None:
        """Compare every digest.

        :param when: what has just been done, for the message
        :param adapter: is compared with what `hold` has noted
        :raises MgkError: a weight has changed; a `PluginError` where a plugin may have done it
        """
        changed = _changed(self.base, tensor_digests(base_state_dict(self.model)))
        rest = _changed(self.residuals, tensor_digests(state_of(self.model).residuals))
        changed += [f"the residual of {name}" for name in rest]
        if adapter is not None:
            own = _changed(self.adapter, tensor_digests(adapter.state_dict()))
            changed += [f"the adapter's {name}" for name in own]
        if changed:
            raise self._error(changed, when)
        self._check_code(when)
        self._passed(when)

    def _check_code(self, when: str) -> None:
        """Check that no plugin's code computes in the model, apart from the base's and the attached adapter's."""
        adapters = state_of(self.model).adapters
        allowed = {self.plugins.plugin_of(type(adapter)) for adapter in adapters}
        for place, plugin in foreign_code(self.model, self.plugins.plugin_of).items():
            if plugin in allowed or place in self.code:
                continue
            raise self.plugins.fault(
                [plugin],
                "a run",
                f"the model computes with its code: {place}, found after {when}. The saved model would not"
                " have it, so what is scored would not be what is saved; nothing was committed or saved"
                f" since. Fix the plugin or leave it out: --without-plugin {plugin}",
            )

    def _take(self, found: dict[str, str], when: str) -> None:
        self.base = found
        self.residuals = tensor_digests(state_of(self.model).residuals)
        self._passed(when)

    def _passed(self, when: str) -> None:
        self.plugins.ran.clear()
        self.since = when

    def _error(self, changed: Sequence[str], when: str) -> MgkError:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        names = ", ".join(changed[:_NAMED]) + more
        start = (
            f"frozen weights were changed: {names}. They were intact after {self.since} and differ"
            f" after {when}"
        )
        end = "nothing was committed or saved since"
        suspects = self.plugins.suspects()
        if not suspects:
            return MgkError(
                f"{start}. No plugin ran in between, so other code wrote to them; {end}"
            )
        named = "; ".join(
            f"{self.plugins.describe(c.plugin)} in {c.hook}" for c in suspects
        )
        first = suspects[0]
        return PluginError(
            first.plugin,
            f"{start}. Plugins that ran in between: {named}; {end}. Fix the plugin or leave it out:"
            f" --without-plugin {first.plugin}",
            first.hook,
        )


def _changed(known: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return the names whose digest is another one.

    A name that comes or goes does not count where a tensor of the same bits has another name:
    an adapter may untie two weights while it is attached.
    """
    names = [n for n in known if n in found and known[n] != found[n]]
    names += [n for n in found if n not in known and found[n] not in known.values()]
    names += [n for n in known if n not in found and known[n] not in found.values()]
    return names


def _belongs(name: str, targets: Iterable[str]) -> bool:
    """Return whether a tensor is a target, or is next to one in its module (a packed weight's scales)."""
    for target in targets:
        module = target.rpartition(".")[0]
        if name == target or (module and name.startswith(f"{module}.")):
            return True
    return False
