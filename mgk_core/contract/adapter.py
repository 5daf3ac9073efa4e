"""The adapter contract: an adapter defines what it does to a weight; the rest is written once.

Merging, verifying, rolling back, gating, the ledger and the retention methods use only what
is defined here, so they work for every adapter that anyone ships.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from attrs import field, frozen
from torch import Tensor, nn

from mgk_core.contract.errors import InputError

Identity = Literal["exact", "close", "none"]
"""How close the output right after attaching is to the base's: bit-equal, within rounding, or free."""

SLOT = "mgk_adapters"
"""Name of the submodule under which an adapted module keeps the parts of its adapters."""

_WRAPPERS = ("_orig_mod", "base_layer", "base_model", "_fsdp_wrapped_module")
_WRAPPED = ".base_layer."


@frozen(eq=False)
class Target:
    """One weight that an adapter changes.

    weight: its name in `base_state_dict`. module, attribute: where the Parameter is.
    transposed: True where the weight is stored (in, out), as transformers' Conv1D does.
    aliases: other names under which the same tensor is known (ties).
    """

    weight: str
    module: nn.Module
    attribute: str = "weight"
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def parameter(self) -> nn.Parameter:
        """The base's own Parameter object; merging exchanges its contents, never the object."""
        value = getattr(self.module, self.attribute)
        assert isinstance(value, nn.Parameter)  # noqa: S101 - a broken adapter, not user input
        return value


@runtime_checkable
class Adapter(Protocol):
    """The trainable parameters that one phase adds to a frozen base."""

    name: str
    identity: Identity
    row_separable: bool

    def parameters(self) -> list[nn.Parameter]:
        """Return the only trainable parameters, in a fixed order; they are registered in the model."""

    def targets(self) -> Mapping[str, Target]:
        """Return weight name in the base → where it is. Ties appear once."""

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return what ``weight`` becomes, fp32, without changing anything.

        weight: (out, ...) fp32 in stored orientation, or the block ``rows`` of its first
        dimension. With ``row_separable`` False all rows are always given.
        """

    def disabled(self) -> AbstractContextManager[None]:
        """Run the base's own forward inside the block. Nests."""

    def detach(self) -> None:
        """Take the adapter off; the base's modules are what they were, bit-identical."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that makes this adapter what it is, by stable names."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state``; an `InputError` names missing, unknown or misshapen keys."""


@frozen(eq=False)
class Factors:
    """An additive low-rank delta ``scale · b @ a``, batch dimensions first.

    a: (..., rank, in)   b: (..., out, rank)   a0, b0: initial factors to subtract (PiSSA), or
    None. The delta has the weight's stored orientation after `Target.transposed` and a reshape.
    """

    a: Tensor
    b: Tensor
    scale: float
    a0: Tensor | None = None
    b0: Tensor | None = None


@runtime_checkable
class LowRank(Protocol):
    """Optional promise of an adapter: where it has factors, its delta is additive and of low rank."""

    def factors(self, name: str) -> Factors | None:
        """Return the live factors of one target (they carry gradients); None: only dense there."""


@runtime_checkable
class Additive(Protocol):
    """Optional promise of an adapter: its delta is added to the weight and does not depend on it.

    Such a weight merges as W + ΔW, with one rounding, and several such adapters merge in any order.
    """

    def delta(self, name: str, rows: slice | None = None) -> Tensor | None:
        """Return what is added to a weight, or to its block ``rows``, in stored orientation; no gradient.

        None: not additive there; `Adapter.merged_weight` is used.
        """


@runtime_checkable
class Vocabulary(Protocol):
    """The tokens of a language model, for adapters that train chosen rows of its table."""

    added: range
    """Ids of the tokens that this run added to the base."""

    def id_of(self, text: str) -> int | None:
        """Return the id of the one token that this text is; None where it is none or several."""

    def texts(self) -> Sequence[str]:
        """Return the text of every token, by id."""


@runtime_checkable
class Saves(Protocol):
    """Optional: an adapter with a file format of its own (such as PEFT's). Without it the core writes
    ``state_dict()`` as one safetensors file. safetensors and JSON only.
    """

    def save(self, directory: Path) -> None:
        """Write the adapter into an existing, empty directory."""

    def load(self, directory: Path) -> None:
        """Load what `save` wrote for an adapter of the same configuration, bit for bit."""


@runtime_checkable
class HasNotes(Protocol):
    """Optional: an adapter that has something to report before training, such as weights left out."""

    notes: Sequence[str]


@frozen(eq=False)
class Untied:
    """A weight that got a Parameter of its own at attach.

    module, attribute: where. shared: the Parameter that it was tied to. configs: those that record the tie.
    """

    module: nn.Module
    attribute: str
    own: nn.Parameter
    shared: nn.Parameter
    configs: tuple[Any, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether no merge has made the two differ; the base is then still a tied one."""
        return self.own.device.type != "meta" and torch.equal(self.own, self.shared)

    def retie(self) -> None:
        """Make the two one Parameter again."""
        setattr(self.module, self.attribute, self.shared)
        for config in self.configs:
            config.tie_word_embeddings = True


@frozen(eq=False)
class ModelState:
    """What mgk remembers of a model: adapters in the order of attaching, and residuals.

    residuals: weight name → fp32 part of the weight that its dtype cannot hold. merged: adapters
    that are folded in and still attached (switched off); undoing their merge takes them out.
    adaptable: names of the modules that adapters may change, with all that is inside them; empty:
    all of the model. untied: weights that adapters have untied. vocabulary: of a language model
    whose bundle has one, else empty. Kept on the module itself, so that a deepcopy of a model is a whole copy.
    """

    adapters: list[Adapter] = field(factory=list)
    residuals: dict[str, Tensor] = field(factory=dict)
    merged: list[Adapter] = field(factory=list)
    adaptable: list[str] = field(factory=list)
    untied: list[Untied] = field(factory=list)
    vocabulary: list[Vocabulary] = field(factory=list)


def state_of(model: nn.Module) -> ModelState:
    """Return the model's `ModelState`, made at the first call.

    :raises InputError: what is given is not a model
    """
    if not isinstance(model, nn.Module):
        inner = "; give its .model" if hasattr(model, "model") else ""
        raise InputError(
            f"expected a model (torch.nn.Module), got {type(model).__name__}{inner}"
        )
    state = model.__dict__.get("mgk_state")
    if not isinstance(state, ModelState):
        state = ModelState()
        model.__dict__["mgk_state"] = state
    return state


def retie(state: ModelState) -> None:
    """Tie again what adapters have untied and no merge has changed."""
    equal = [tie for tie in state.untied if tie.equal]
    state.untied[:] = [tie for tie in state.untied if tie not in equal]
    for tie in equal:
        tie.retie()


def may_adapt(model: nn.Module, name: str) -> bool:
    """Return whether adapters may change the module or weight of this name in the base.

    A multimodal model's bundle limits adapters to its language model (`Adaptable`).
    """
    allowed = state_of(model).adaptable
    return not allowed or any(name == a or name.startswith(f"{a}.") for a in allowed)


def base_name(name: str) -> str | None:
    """Return a parameter's name in the bare base, or None where it belongs to an adapter.

    Removes what torch.compile, DDP, FSDP and PEFT put around a module.
    """
    parts = name.split(".")
    if SLOT in parts or any(p.startswith("lora_") for p in parts):
        return None
    if parts[0] == "module":
        parts = parts[1:]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(p for p in parts if p not in _WRAPPERS)


def check_state(
    name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Raise `InputError` with every missing, unknown or misshapen key of a state that adapter ``name`` is to load."""
    wrong = [f"missing {k}" for k in own if k not in state]
    wrong += [f"unknown {k}" for k in state if k not in own]
    wrong += [
        f"{k}: expected shape {tuple(own[k].shape)}, got {tuple(state[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(
            f"adapter {name!r}: the state does not fit: {'; '.join(wrong[:8])}{more}"
        )


def load_in_place(
    name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Copy ``state`` into an adapter's ``own`` tensors; nothing is changed where it does not fit (`check_state`)."""
    check_state(name, own, state)
    for key, tensor in own.items():
        tensor.detach().copy_(state[key])


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the base's own names and tensors (not copies), whatever wraps them; ties once.

    Tied tensors have the first name in registration order; so has a weight that an adapter has
    untied and no merge has changed. Persistent buffers count. Of a module that wraps a
    ``base_layer`` nothing counts but that layer.
    """
    same = {id(tie.own): id(tie.shared) for tie in state_of(model).untied if tie.equal}
    own = {id(p) for adapter in state_of(model).adapters for p in adapter.parameters()}
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    tensors = model.state_dict(keep_vars=True)
    wrapping = {name[: name.index(_WRAPPED)] for name in tensors if _WRAPPED in name}
    for name, tensor in tensors.items():
        plain = None if _beside(name, wrapping) else base_name(name)
        key = same.get(id(tensor), id(tensor))
        if plain is None or not isinstance(tensor, Tensor) or key in own or key in seen:
            continue
        seen.add(key)
        result[plain] = tensor
    return result


def _beside(name: str, wrapping: set[str]) -> bool:
    """Whether a tensor is in a module that wraps a base layer, and not in that layer."""
    if not wrapping or _WRAPPED in name:
        return False
    parts = name.split(".")
    return any(".".join(parts[:i]) in wrapping for i in range(1, len(parts)))


def aliases_of(model: nn.Module, tensor: Tensor) -> tuple[str, ...]:
    """Return every base name under which exactly this tensor object is registered."""
    named = model.named_parameters(remove_duplicate=False)
    names = (base_name(n) for n, p in named if p is tensor)
    return tuple(n for n in names if n is not None)


@contextmanager
def all_disabled(model: nn.Module) -> Iterator[None]:
    """Run the bare base inside the block, whatever adapters are attached."""
    with ExitStack() as stack:
        for adapter in state_of(model).adapters:
            stack.enter_context(adapter.disabled())
        yield


def trainable(model: nn.Module) -> list[tuple[str, Any]]:
    """Return (name, parameter) of all that would receive a gradient."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


__all__ = [
    "SLOT",
    "Adapter",
    "Additive",
    "Factors",
    "HasNotes",
    "Identity",
    "LowRank",
    "ModelState",
    "Saves",
    "Target",
    "Untied",
    "Vocabulary",
    "aliases_of",
    "all_disabled",
    "base_name",
    "base_state_dict",
    "check_state",
    "load_in_place",
    "may_adapt",
    "retie",
    "state_of",
    "trainable",
]
