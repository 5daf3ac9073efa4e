"""An adapter under test: how it is attached, to which model, and which rule merges it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import (
    Adapter,
    Target,
    all_disabled,
    base_state_dict,
    state_of,
)
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import MergeReport
from mgk_core.run import api
from mgk_core.run.verify_merge import DRAWS, FACTOR, last_bits_flipped, relative_error
from mgk_core.testing.history import snapshot, train
from mgk_core.testing.laws import NotApplicable, require
from mgk_core.testing.zoo import Case

Attach = Callable[[nn.Module, str], Adapter]
"""Model, name → the adapter on it: ``lambda model, name: mgk.attach(model, "mine", name=name, rank=2)``."""

Merge = Callable[[nn.Module, Adapter], MergeReport]


@frozen(eq=False)
class Subject:
    """What the laws for adapters are tested on. make: a fresh model each time, always the same."""

    attach: Attach
    make: Callable[[], Case]
    merge: Merge = api.merge

    def on(self, case: Case, name: str = "adapter") -> Adapter:
        """Attach to a case's model.

        :raises NotApplicable: the adapter refuses this kind of model
        """
        try:
            adapter = self.attach(case.model, name)
        except InputError as error:
            raise NotApplicable(f"it refuses this model: {error}") from None
        adapters = state_of(case.model).adapters
        if not any(a is adapter for a in adapters):
            adapters.append(adapter)
        return adapter

    def trained(
        self, *, seed: int = 0, dtype: torch.dtype | None = None
    ) -> tuple[Case, Adapter]:
        """Return a fresh model with a trained adapter on it."""
        case = self.make()
        if dtype is not None:
            case.model.to(dtype)
        adapter = self.on(case)
        train(case, adapter, seed=seed)
        return case, adapter


@torch.no_grad()
def output(case: Case, seed: int = 0) -> Tensor:
    """Return the model's output on fixed inputs."""
    found: Tensor = case.model(case.inputs(seed)).clone()
    return found


def distance(found: Tensor, reference: Tensor) -> float:
    """‖found − reference‖₂ / ‖reference‖₂, in float64."""
    return relative_error([found], [reference])


@frozen(eq=False)
class Places:
    """The targets of an adapter that may be off by now."""

    where: Mapping[str, Target]

    def targets(self) -> Mapping[str, Target]:
        """Return weight name → where it is in the model."""
        return self.where


def rounding_bound(case: Case, places: Mapping[str, Target], seed: int = 0) -> float:
    """Return how far apart rounding alone may put merged and unmerged outputs: measured, as `mgk_core.run.verify_merge` does."""
    plain, measured = output(case, seed), 0.0
    for draw in range(DRAWS):
        with last_bits_flipped(Places(places), seed + draw):  # type: ignore[arg-type]
            measured = max(measured, distance(output(case, seed), plain))
    full = any(
        t.parameter.dtype in (torch.float32, torch.float64) for t in places.values()
    )
    inner = max(
        (t.parameter[0].numel() for t in places.values() if t.parameter.dim() > 1),
        default=1,
    )
    return FACTOR * measured * (inner**0.5 if full else 1.0)


def unit_roundoff(adapter: Adapter) -> float:
    """Return the unit roundoff of what the adapter computes with: its coarsest parameter's."""
    return max(torch.finfo(p.dtype).eps for p in adapter.parameters()) / 2


def inner_dimension(weight: Tensor) -> int:
    """Return the length of the longest sum that an entry of a weight's delta may come from."""
    return max(weight.shape[0], weight[0].numel()) if weight.dim() > 1 else 1


def plain_output(case: Case, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the output of the bare base with some weights replaced."""
    twin = Case(case.kind, copy.deepcopy(case.model), case.sample)
    own = base_state_dict(twin.model)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
    with all_disabled(twin.model):
        return output(twin)


def base_of(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the base's tensors and of the residuals beside them."""
    return snapshot(case), {
        n: t.clone() for n, t in state_of(case.model).residuals.items()
    }


def near_live(
    case: Case, live: Tensor, places: Mapping[str, Target], when: str
) -> None:
    """Require that the merged model computes ``live``, the unmerged outputs, within the tolerance from rounding."""
    error, bound = distance(output(case), live), rounding_bound(case, places)
    require(
        error <= bound,
        f"{when}merged differs from unmerged by {error:.3g} (relative 2-norm); at most {bound:.3g}",
    )


def same_state(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two states have the same names in the same order, and the same bits."""
    return list(a) == list(b) and all(
        t.dtype == b[n].dtype and torch.equal(t.nan_to_num(), b[n].nan_to_num())
        for n, t in a.items()
    )


def looks(model: nn.Module) -> dict[str, object]:
    """Return the class of every module, and the flags of every parameter, by name."""
    classes: dict[str, object] = {
        f"module {n}": type(m) for n, m in model.named_modules()
    }
    return classes | {
        f"parameter {n}": p.requires_grad for n, p in model.named_parameters()
    }
