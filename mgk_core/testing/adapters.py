"""The laws of adapters, as functions of a `Subject`. `check_adapter` holds an adapter to all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import (
    Adapter,
    Additive,
    LowRank,
    aliases_of,
    base_state_dict,
    state_of,
    trainable,
)
from mgk_core.contract.errors import InputError, MergeError
from mgk_core.contract.progress import track
from mgk_core.model.inject import is_adapted
from mgk_core.model.lowrank import stored_delta
from mgk_core.run import api
from mgk_core.run.phase import CLOSE
from mgk_core.testing.carrying import copies, detach, moves, save_and_load
from mgk_core.testing.forward import formulas, forward
from mgk_core.testing.history import same_bits, snapshot, train
from mgk_core.testing.laws import (
    Law,
    LawResult,
    NotApplicable,
    broken,
    hold_all,
    law,
    require,
)
from mgk_core.testing.subject import (
    Attach,
    Merge,
    Subject,
    distance,
    inner_dimension,
    looks,
    near_live,
    output,
    plain_output,
    same_state,
    unit_roundoff,
)  # fmt: skip
from mgk_core.testing.zoo import KINDS, Case, Kind, make

PHASES = 3


@law("identity at attach")
def identity(subject: Subject) -> None:
    """Attaching changes no tensor of the base, and no output where the adapter promises so.

    exact: the same bits; close: within 1e-3 (relative 2-norm); none: nothing is promised.
    """
    case = subject.make()
    before, plain = snapshot(case), output(case)
    adapter = subject.on(case)
    require(not (changed := same_bits(before, case)), f"attaching changed {changed}")
    error = distance(output(case), plain)
    if adapter.identity == "exact":
        require(
            torch.equal(output(case), plain),
            f"identity is 'exact', but outputs moved by {error:.3g}",
        )
    if adapter.identity == "close":
        require(
            error <= CLOSE,
            f"identity is 'close', but outputs moved by {error:.3g}, more than {CLOSE:g}",
        )


@law("only its parameters train")
def only_its_own_train(subject: Subject) -> None:
    """What requires a gradient is what ``parameters()`` returns, registered in the model; the base gets none."""
    case = subject.make()
    adapter = subject.on(case)
    own = {id(p) for p in adapter.parameters()}
    require(own, "parameters() is empty: nothing can be trained")
    others = [n for n, p in trainable(case.model) if id(p) not in own]
    require(not others, f"{others} require a gradient and are not in parameters()")
    known = {id(p) for p in case.model.parameters()}
    require(own <= known, "some of parameters() are not registered in the model")
    require(
        all(p.requires_grad for p in adapter.parameters()),
        "some of parameters() require no gradient",
    )
    before = snapshot(case)
    case.model.train()
    case.model(case.inputs()).square().sum().backward()
    require(
        any(p.grad is not None and p.grad.any() for p in adapter.parameters()),
        "no parameter got a gradient",
    )
    grads = [
        n
        for n, t in base_state_dict(case.model).items()
        if getattr(t, "grad", None) is not None
    ]
    require(not grads, f"the base's {grads} got a gradient")
    require(
        not (changed := same_bits(before, case)),
        f"a training step changed the base's {changed}",
    )


@law("merged equals unmerged")
def merged_equals_live(subject: Subject) -> None:
    """A trained adapter's merged model computes what the unmerged one did, within the tolerance from rounding."""
    case, adapter = subject.trained()
    places = dict(adapter.targets())
    live = output(case)
    subject.merge(case.model, adapter)
    near_live(case, live, places, "")


@law("k merges equal k applications")
def many_phases(subject: Subject) -> None:
    """After k trained phases in float64 each weight is k applications of ``merged_weight``, and merged equals unmerged each time."""
    case = subject.make()
    case.model.double()
    expected = {n: t.detach().clone() for n, t in base_state_dict(case.model).items()}
    for phase in range(PHASES):
        adapter = subject.on(case, f"phase{phase}")
        train(case, adapter, seed=phase)
        live, places = output(case), dict(adapter.targets())
        allowed = {}
        for name in places:
            applied = (
                adapter.merged_weight(name, expected[name].clone()).detach().double()
            )
            size = max(expected[name].abs().max().item(), applied.abs().max().item())
            # a sum of n products errs by n u at most (Higham 2002, eq. 3.5), on either side
            allowed[name] = (
                2
                * (phase + 1)
                * (inner_dimension(applied) + 4)
                * unit_roundoff(adapter)
                * size
            )
            expected[name] = applied
        subject.merge(case.model, adapter)
        for name, bound in allowed.items():
            error = (
                (base_state_dict(case.model)[name].detach() - expected[name])
                .abs()
                .max()
                .item()
            )
            require(
                error <= bound,
                f"phase {phase + 1}: {name} is off by {error:.3g}; at most {bound:.3g}",
            )
        error, most = distance(output(case), live), 64 * 40 * unit_roundoff(adapter)
        require(
            error <= most,
            f"phase {phase + 1}: merged differs from unmerged by {error:.3g}; at most {most:.3g}",
        )


@law("additive deltas add up")
def additive(subject: Subject) -> None:
    """Where an adapter promises factors or a delta, two of them attached and trained together merge to the base plus the sum of their deltas."""
    case = subject.make()
    case.model.double()
    start = {n: t.detach().clone() for n, t in base_state_dict(case.model).items()}
    both = [subject.on(case, "one"), subject.on(case, "two")]
    for i, adapter in enumerate(both):
        train(case, adapter, seed=i)
    total: dict[str, Tensor] = {}
    for adapter in both:
        for name, delta in _deltas(adapter).items():
            total[name] = total.get(name, start[name]) + delta
    unit = unit_roundoff(both[0])
    live, plain = output(case), plain_output(case, total)
    error, most = distance(live, plain), 64 * 40 * unit
    require(
        error <= most,
        f"live differs from the base plus both deltas by {error:.3g}; at most {most:.3g}",
    )
    for adapter in both:
        subject.merge(case.model, adapter)
    for name, weight in total.items():
        error = (base_state_dict(case.model)[name].detach() - weight).abs().max().item()
        bound = 4 * (inner_dimension(weight) + 4) * unit * weight.abs().max().item()
        require(
            error <= bound, f"{name} is off the sum by {error:.3g}; at most {bound:.3g}"
        )


def _deltas(adapter: Adapter) -> dict[str, Tensor]:
    """Return every target's dense delta; `NotApplicable` where there is none."""
    found = {}
    for name, target in adapter.targets().items():
        if isinstance(adapter, Additive) and (own := adapter.delta(name)) is not None:
            found[name] = own.double()
            continue
        factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
        if factors is None:
            raise NotApplicable("it promises no additive delta (factors or delta)")
        delta = stored_delta(factors, transposed=target.transposed, dtype=torch.float64)
        found[name] = delta.dense().reshape(target.parameter.shape)
    return found


@law("rows merge block by block")
def rows(subject: Subject) -> None:
    """With ``row_separable``, ``merged_weight`` of blocks of rows is that of all rows at once."""
    _, adapter = subject.trained(dtype=torch.float64)
    if not adapter.row_separable:
        raise NotApplicable("it is not row_separable")
    for name, target in adapter.targets().items():
        weight = target.parameter.detach().clone()
        whole = adapter.merged_weight(name, weight.clone())
        for size in (1, 2):
            blocks = [
                slice(i, min(i + size, len(weight)))
                for i in range(0, len(weight), size)
            ]
            apart = torch.cat(
                [adapter.merged_weight(name, weight[b].clone(), b) for b in blocks]
            )
            require(
                apart.shape == whole.shape,
                f"{name}: blocks make {tuple(apart.shape)}, not {tuple(whole.shape)}",
            )
            error = (apart - whole).abs().max().item()
            bound = (
                2
                * (inner_dimension(weight) + 4)
                * unit_roundoff(adapter)
                * whole.abs().max().item()
            )
            require(
                error <= bound,
                f"{name}: blocks of {size} rows are off by {error:.3g}; at most {bound:.3g}",
            )


@law("merged_weight is pure")
def pure(subject: Subject) -> None:
    """``merged_weight`` gives the same bits twice and changes neither its argument nor the model, on any weight."""
    case, adapter = subject.trained()
    before, state = (
        snapshot(case),
        {n: t.clone() for n, t in adapter.state_dict().items()},
    )
    for name, target in adapter.targets().items():
        weight = target.parameter.detach().float().clone()
        given = weight.clone()
        first = adapter.merged_weight(name, given).clone()
        require(
            torch.equal(given, weight), f"{name}: merged_weight changed its argument"
        )
        require(
            torch.equal(adapter.merged_weight(name, given), first),
            f"{name}: the second answer is another",
        )
        require(
            first.dtype == torch.float32, f"{name}: {first.dtype} from an fp32 weight"
        )
        require(not first.requires_grad, f"{name}: the result carries gradients")
    require(
        not (changed := same_bits(before, case)),
        f"merged_weight changed the base's {changed}",
    )
    require(
        same_state(state, adapter.state_dict()), "merged_weight changed the adapter"
    )


@law("disabled() is the base")
def disabled(subject: Subject) -> None:
    """Inside ``disabled()`` the base's own output comes out; blocks nest, and after the last the adapter is active again."""
    case = subject.make()
    plain = output(case)
    adapter = subject.on(case)
    train(case, adapter)
    live, exact = output(case), adapter.identity == "exact"
    with adapter.disabled():
        outer = output(case)
        with adapter.disabled():
            inner = output(case)
        after = output(case)
    for found, where in (
        (outer, "inside"),
        (inner, "in a nested block"),
        (after, "after a nested block"),
    ):
        error = distance(found, plain)
        same = torch.equal(found, plain) if exact else error <= CLOSE
        require(same, f"{where} the output differs from the base's by {error:.3g}")
    require(
        torch.equal(output(case), live), "after the block the adapter is not live again"
    )


@law("merge twice is refused")
def merge_twice(subject: Subject) -> None:
    """A second merge of the same adapter raises `MergeError` and changes nothing."""
    case, adapter = subject.trained()
    subject.merge(case.model, adapter)
    before = snapshot(case)
    try:
        subject.merge(case.model, adapter)
    except MergeError:
        require(
            not (changed := same_bits(before, case)),
            f"the refused merge changed {changed}",
        )
        return
    broken("the second merge was accepted")


@law("NaN and inf are refused")
def not_finite(subject: Subject) -> None:
    """An adapter with NaN or inf in it cannot be merged: `MergeError`, and base and adapter are as before."""
    for bad in (math.nan, math.inf):
        case, adapter = subject.trained()
        last = adapter.parameters()[-1]
        with torch.no_grad():
            last.view(-1)[-1] = bad
        before, live = snapshot(case), list(state_of(case.model).adapters)
        try:
            subject.merge(case.model, adapter)
        except MergeError:
            require(
                not (changed := same_bits(before, case)),
                f"{bad}: refused, yet {changed} changed",
            )
            require(
                state_of(case.model).adapters == live,
                f"{bad}: refused, yet the adapter was taken off",
            )
        else:
            broken(f"an adapter with {bad} in it was merged")


@law("tied weights")
def ties(subject: Subject) -> None:
    """On a model with tied weights: refused with nothing changed, or merged equals unmerged and every alias is named."""
    case = tied_case()
    before, names = snapshot(case), looks(case.model)
    try:
        adapter = subject.attach(case.model, "adapter")
    except InputError:
        require(not same_bits(before, case), "refused, yet the base changed")
        require(
            looks(case.model) == names, "refused, yet something was left on the model"
        )
        require(
            not any(is_adapted(m) for m in case.model.modules()),
            "refused, yet a part was left on a module",
        )
        return
    if adapter not in state_of(case.model).adapters:
        state_of(case.model).adapters.append(adapter)
    for name, target in adapter.targets().items():
        shared = set(aliases_of(case.model, target.parameter)) - {name}
        require(
            shared <= set(target.aliases),
            f"{name} is tied to {sorted(shared)}, and its Target names no alias",
        )
    train(case, adapter)
    live, places = output(case), dict(adapter.targets())
    subject.merge(case.model, adapter)
    near_live(case, live, places, "")


def tied_case(seed: int = 0) -> Case:
    """Return a model whose head shares the embedding's weight."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Embedding(11, 6),
            nn.Linear(6, 9),
            nn.GELU(),
            nn.Linear(9, 6),
            nn.Linear(6, 11, bias=False),
        )
    model[4].weight = model[0].weight
    model.requires_grad_(requires_grad=False)
    return Case(
        "mixed",
        model.eval(),
        lambda g, batch: torch.randint(0, 11, (batch, 4), generator=g),
    )


ON_A_MODEL: tuple[Law[Subject], ...] = (
    identity, only_its_own_train, forward, formulas, merged_equals_live, many_phases, additive, rows, pure, disabled, merge_twice, detach,
    save_and_load, moves, not_finite, copies,
)  # fmt: skip
LAWS: tuple[Law[Subject], ...] = (*ON_A_MODEL, ties)


def check_adapter(
    attach: Attach,
    named: str = "adapter",
    *,
    kinds: Iterable[Kind] = KINDS,
    merge: Merge = api.merge,
    thorough: bool = True,
) -> list[LawResult]:
    """Run the conformance tests on an adapter, with two-layer models of several kinds.

    A kind that the adapter refuses with an `InputError` gives one row that reports it; at least one
    has to be accepted, or the row ``some model`` fails.

    :param attach: model, name → the adapter on it
    :param thorough: False: leave out kinds whose own layer the adapter refuses, where only the
        linear layers behind it would be adapted once more
    """
    results: list[LawResult] = []
    accepted = False
    for kind in track(list(kinds), "models"):
        subject = Subject(attach, _maker(kind), merge)
        where = f"{named} on {kind}"
        if not thorough and kind != "linear" and not _takes(attach, kind):
            continue
        try:
            subject.on(subject.make())
        except NotApplicable as reason:
            results.append(LawResult("attaches", where, None, str(reason)))
            continue
        except Exception as error:  # a plugin may raise anything  # noqa: BLE001
            results.append(
                LawResult(
                    "attaches",
                    where,
                    ok=False,
                    detail=f"raised {type(error).__name__}: {error}",
                )
            )
            accepted = True
            continue
        accepted = True
        results += hold_all(ON_A_MODEL, subject, where)
    if not accepted:
        results.append(
            LawResult(
                "attaches", named, ok=False, detail="it refuses every model of the kit"
            )
        )
    results.append(
        ties.hold(Subject(attach, tied_case, merge), f"{named} on tied weights")
    )
    return results


def _takes(attach: Attach, kind: Kind) -> bool:
    """Return whether the adapter can be attached to the bare layer of a kind."""
    try:
        attach(make(kind).model, "adapter")
    except InputError:
        return False
    except Exception:  # noqa: BLE001 - whatever is wrong, the tests on this kind will report it
        return True
    return True


def _maker(kind: Kind) -> Callable[[], Case]:
    return lambda: make(kind, layers=2, seed=7)
