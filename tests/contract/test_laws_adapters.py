"""Adapters: the shipped ones hold to every law; one broken in one way breaks exactly the law about it."""

from __future__ import annotations

import contextlib
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from torch.nn import functional

import mgk
from mgk_core.contract.adapter import Factors, Target, state_of
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import put
from mgk_core.testing import adapters
from mgk_core.testing.adapters import check_adapter
from mgk_core.testing.laws import LawBroken, assert_hold
from mgk_core.testing.reference import DenseAdapter, DensePart, attach_dense
from mgk_core.testing.subject import Subject
from mgk_core.testing.zoo import make

OPTIONS = [
    ({}, ["transposed", "mixed"]),
    ({"rslora": True, "init": "orthogonal"}, ["linear"]),
    ({"init": "pissa"}, ["linear"]),
]


@pytest.mark.parametrize("type_", ["lora", "dora"])
@pytest.mark.parametrize(
    ("options", "kinds"), OPTIONS, ids=["plain", "orthogonal", "pissa"]
)
def test_shipped_adapters_hold_to_every_law(type_, options, kinds):
    """Nothing is broken; what does not apply is rows and sums of DoRA."""

    def attach(model, name):
        return mgk.attach(
            model, type_, name=name, rank=2, alpha=3, targets=["*"], **options
        )

    found = check_adapter(attach, type_, kinds=kinds)
    assert_hold(found)
    unheld = {r.law for r in found if r.ok is None}
    assert unheld <= (
        {"additive deltas add up", "rows merge block by block"}
        if type_ == "dora"
        else set()
    )


def test_the_reference_adapter_holds_to_every_law():
    """And refuses the kinds that it does not know, which is no fault."""
    found = check_adapter(
        lambda model, name: attach_dense(model, name),
        "dense",
        kinds=["linear", "conv2d"],
    )
    assert_hold(found)


class Rank(DenseAdapter):
    """A dense delta that promises factors: D = D · 1."""

    def factors(self, name):
        delta = self.parts[name].delta
        return Factors(torch.eye(delta.shape[1], dtype=delta.dtype), delta, 1.0)


class Half(DenseAdapter):
    """Forgets the scale when it merges."""

    def merged_weight(self, name, weight, rows=None):
        return (
            weight
            + self.parts[name].delta.detach().to(weight.dtype)[rows or slice(None)] / 2
        )


class Noisy(DensePart):
    """Does not begin at zero."""

    def __init__(self, weight):
        super().__init__(weight)
        self.delta.data.normal_(generator=torch.Generator().manual_seed(0))


class Stale(DenseAdapter):
    """Keeps what it computed for a module, also when the base has changed since."""

    kept: WeakKeyDictionary = WeakKeyDictionary()  # module → delta

    def merged_weight(self, name, weight, rows=None):
        delta = self.kept.setdefault(
            self.places[name].module, self.parts[name].delta.detach().clone()
        )
        return weight + delta.to(weight.dtype)[rows or slice(None)]


class Deaf(DensePart):
    """Computes the module's output from its own weight, past what another adapter did to it."""

    on_weights = False

    def adjust(self, module, args, output):
        wide = self.delta.dtype
        x, weight = args[0].to(wide), module.weight.to(wide) + self.delta
        return functional.linear(x, weight, module.bias.to(wide)).to(output.dtype)


class FirstRows(DenseAdapter):
    """Takes the first rows for any rows."""

    def merged_weight(self, name, weight, rows=None):
        return weight + self.parts[name].delta.detach().to(weight.dtype)[: len(weight)]


class InPlace(DenseAdapter):
    """Adds to what it was given."""

    def merged_weight(self, name, weight, rows=None):
        return weight.add_(
            self.parts[name].delta.detach()[rows or slice(None)].to(weight.dtype)
        )


class AlwaysOn(DenseAdapter):
    """Cannot be switched off."""

    def disabled(self):
        return contextlib.nullcontext()


class Unfreezing(DenseAdapter):
    """Leaves the base trainable behind."""

    def detach(self):
        super().detach()
        for target in self.places.values():
            target.parameter.requires_grad_(True)


class Forgetful(DenseAdapter):
    """Leaves a tensor out of its state."""

    def state_dict(self):
        return dict(list(super().state_dict().items())[1:])


class Still(DensePart):
    """Keeps a factor beside the module's buffers, where ``.to()`` does not find it."""

    on_weights = False

    def __init__(self, weight):
        super().__init__(weight)
        self.factor = [torch.eye(weight.shape[1], dtype=self.delta.dtype)]

    def adjust(self, module, args, output):
        narrow = args[0].dtype in (torch.bfloat16, torch.float16)
        x = args[0].float() if narrow else args[0]
        return (output + functional.linear(x @ self.factor[0], self.delta)).to(
            output.dtype
        )


class Masking(DenseAdapter):
    """Hides NaN and inf from the merge."""

    def merged_weight(self, name, weight, rows=None):
        delta = self.parts[name].delta.detach().nan_to_num(0, 0, 0)
        return weight + delta.to(weight.dtype)[rows or slice(None)]


class Unpicklable(DensePart):
    """Holds a function that has no name."""

    def __init__(self, weight):
        super().__init__(weight)
        self.function = lambda: None


class Stray(DensePart):
    """Has a second parameter."""

    def __init__(self, weight):
        super().__init__(weight)
        self.stray = nn.Parameter(torch.zeros(1))


class Hiding(DenseAdapter):
    """Does not name every trainable parameter."""

    def parameters(self):
        return [part.delta for part in self.parts.values()]


class TenfoldInHalf(DensePart):
    """Has a forward pass of its own, which is wrong in one dtype."""

    def adjust(self, module, args, output):
        wide = self.delta.dtype
        delta = functional.linear(args[0].to(wide), self.delta)
        return (output + delta * (10 if output.dtype == torch.float16 else 1)).to(
            output.dtype
        )


class TenfoldForOthers(DensePart):
    """Has a right forward pass, and tells later adapters of a weight that it does not use."""

    def adjust(self, module, args, output):
        delta = functional.linear(args[0].to(self.delta.dtype), self.delta)
        return (output + delta).to(output.dtype)

    def weights(self, module, current):
        return {
            "weight": (current["weight"] + 10 * self.delta).to(current["weight"].dtype)
        }


def attach_tied(model, name):
    """Attach to every linear layer, without a look at ties."""
    parts, places = {}, {}
    for path, module in [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)
    ]:
        parts[f"{path}.weight"], places[f"{path}.weight"] = (
            DensePart(module.weight),
            Target(f"{path}.weight", module),
        )
        put(module, name, parts[f"{path}.weight"])
    adapter = DenseAdapter(name, parts, places)
    state_of(model).adapters.append(adapter)
    return adapter


def of(cls=DenseAdapter, part=DensePart):
    return lambda model, name: attach_dense(model, name, cls=cls, part=part)


BROKEN = {
    "identity at attach": of(part=Noisy),
    "forward pass equals merged_weight": of(part=TenfoldInHalf),
    "weights and factors equal merged_weight": of(part=TenfoldForOthers),
    "only its parameters train": of(Hiding, Stray),
    "k merges equal k applications": of(Stale),
    "additive deltas add up": of(Rank, Deaf),
    "rows merge block by block": of(FirstRows),
    "merged_weight is pure": of(InPlace),
    "disabled() is the base": of(AlwaysOn),
    "detach is bit-exact": of(Unfreezing),
    "save and load": of(Forgetful),
    "moves between dtypes and devices": of(part=Still),
    "NaN and inf are refused": of(Masking),
    "copies are whole": of(part=Unpicklable),
    "tied weights": attach_tied,
}


def broken_laws(attach, merge=mgk.merge):
    return {
        r.law
        for r in check_adapter(attach, kinds=["linear"], merge=merge)
        if r.ok is False
    }


@pytest.mark.parametrize("law", BROKEN)
def test_one_fault_breaks_exactly_its_law(law):
    """Each law catches what it is there for, and the others have nothing to say of it."""
    assert broken_laws(BROKEN[law]) == {law}


def test_a_forgotten_scale_breaks_what_compares_merged_with_live():
    """Every law that merges and looks at the output says so: one merge, k merges, merges after a move."""
    assert broken_laws(of(Half)) == {
        "merged equals unmerged", "k merges equal k applications", "moves between dtypes and devices",
        "forward pass equals merged_weight", "weights and factors equal merged_weight",
    }  # fmt: skip


def test_a_merge_that_can_be_repeated_breaks_its_law():
    """Here the rule is at fault: it adds the delta as often as it is asked."""

    def careless(model, adapter):
        with torch.no_grad():
            for name, target in adapter.targets().items():
                target.parameter.copy_(adapter.merged_weight(name, target.parameter))
        if adapter in state_of(model).adapters:
            mgk.detach(model, adapter)

    assert broken_laws(of(), careless) == {
        "merge twice is refused",
        "NaN and inf are refused",
    }


def test_every_law_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    others = {"merged equals unmerged", "merge twice is refused"}
    assert {law.name for law in adapters.LAWS} == set(BROKEN) | others


def test_a_law_is_called_alone_and_says_on_what():
    """The error carries the law's name and the figures."""
    subject = Subject(of(Half), lambda: make("linear", layers=2))
    with pytest.raises(
        LawBroken, match="merged equals unmerged: merged differs from unmerged by"
    ) as caught:
        adapters.merged_equals_live(subject)
    assert caught.value.law == "merged equals unmerged"


def refusing(model, name):
    raise InputError("not this model")


def test_an_adapter_that_refuses_every_model_has_shown_nothing():
    """No law held is no proof."""
    assert broken_laws(refusing) == {"attaches"}


def test_an_adapter_that_raises_is_broken():
    """Whatever it raises; the other laws are not held over what does not attach."""
    assert "attaches" in broken_laws(lambda model, name: 1 / 0)
