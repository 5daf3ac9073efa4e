"""Why covariance-merge protects tasks with inputs of their own, and not tasks that share their inputs.

    OMP_NUM_THREADS=1 python benchmarks/covariance_split.py [--suites split permuted] [--seeds 0 1 2]

After each phase, ΔW is the delta as trained and ΔW* the one that was merged. For every layer and phase the script measures
what is left of the delta's effect, ‖ΔW* x‖ / ‖ΔW x‖ (root mean square), on the new task's inputs and on those of all earlier
tasks. "old margins moved" is what reaches the answers: the root mean square change of an old test image's margin (right logit minus
best other) in a phase, relative to the margins' own; one part is the same for all images of a class, the other differs within it.
The rows compare the method with shrinking each delta by one
number, 1 / (1 + t) after t old tasks, which is what the formula amounts to where C_new = C_old, and with other strengths.
"""

import argparse
import statistics
from collections import defaultdict

import torch
from torch import Tensor, nn

import mgk
from mgk_bench.figures import (
    Matrix,
    average_performance,
    backward_transfer,
    learning_accuracy,
)
from mgk_bench.grid import suite_of
from mgk_bench.loop import base_of, phase_table, recipe_of
from mgk_bench.methods import Method
from mgk_core.contract.bundle import PhaseData

WHOLE = {"sketch": 0, "max_tokens": 1_000_000}
STRENGTHS = (0.3, 1.0)


def rows_of(strengths: tuple[float, ...]) -> dict[str, Method | None]:
    """Name → method; None: shrink by 1 / (1 + t)."""
    found: dict[str, Method | None] = {"naive": Method("naive", "", {"naive": {}})}
    for value in strengths:
        options = {"covariance-merge": WHOLE | {"strength": value}}
        found[f"covariance-merge, λ = {value:g}"] = Method("c", "", options)
    guard = Method("g", "", {"drift-guard": WHOLE})
    return found | {"drift-guard": guard, "delta / (1 + t)": None}


def inputs_of(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Weight name → inputs of its layer, (n, in)."""
    found: dict[str, Tensor] = {}
    x = batch
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear):
            found[f"{name}.weight"] = x
        x = layer(x)
    return found


def effect(delta: Tensor, inputs: Tensor) -> float:
    return float((inputs @ delta.mT).square().mean().sqrt())


@torch.no_grad()
def shares(suite, bundle, number, before, result, alpha_over_rank):
    """Return what the merge left of the effect on new and on old inputs, per layer."""
    tasks = suite.tasks
    new = inputs_of(bundle.model, tasks[number].train.data.inputs)
    old = inputs_of(
        bundle.model, torch.cat([t.train.data.inputs for t in tasks[:number]])
    )
    for name, weight in bundle.model.named_parameters():
        if name not in new:
            continue
        trained = (
            alpha_over_rank * result.adapter[f"{name}/b"] @ result.adapter[f"{name}/a"]
        )
        merged = weight - before[name]
        yield (
            effect(merged, new[name]) / effect(trained, new[name]),
            effect(merged, old[name]) / effect(trained, old[name]),
        )


@torch.no_grad()
def margins(bundle, task) -> Tensor:
    """Logit of the right class minus the best other one, of each test image."""
    logits, labels = bundle.outputs(task.test), task.test.labels[:, None]
    right = logits.gather(1, labels)[:, 0]
    return right - logits.scatter(1, labels, -torch.inf).amax(1)


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def moves(after: Tensor, before: Tensor, labels: Tensor) -> dict[str, float]:
    """How an old task's margins changed in one phase, relative to their size; by class, and within the classes."""
    change, means = after - before, torch.zeros_like(after)
    for label in labels.unique():
        means[labels == label] = change[labels == label].mean()
    size = rms(before)
    return {
        "old margins moved": rms(change) / size,
        "by class": rms(means) / size,
        "within class": rms(change - means) / size,
        "turned wrong, %": 100 * float(((before > 0) & (after <= 0)).float().mean()),
    }


def run(suite, base, seed: int, method: Method | None) -> dict[str, object]:
    bundle = suite.build(seed)
    bundle.model.load_state_dict(base)
    recipe = recipe_of(suite)
    plain = Method("naive", "", {"naive": {}})
    rows, last, kept, moved, learned = (
        [[suite.score(bundle, t) for t in suite.tasks]],
        None,
        [],
        [],
        [],
    )
    for number in range(1, len(suite.tasks)):
        table = phase_table(method or plain, recipe)
        if method is None:
            table["transform"] = {"wise-ft": {"alpha": 1 / (1 + number)}}
        data = PhaseData(train=suite.tasks[number].train)
        if last is None:
            train = suite.tasks[0].train
            data = PhaseData(
                train=data.train, calibration=(train.batch(range(len(train))),)
            )
        old = suite.tasks[:number]
        margins_before = [margins(bundle, t) for t in old]
        before = {n: w.clone() for n, w in bundle.model.named_parameters()}
        last = mgk.run_phase(
            bundle,
            data,
            table,
            name=suite.tasks[number].name,
            after=last,
            then=[table] * (len(suite.tasks) - number - 1),
            seed=seed,
        )
        kept += list(
            shares(suite, bundle, number, before, last, recipe.alpha / recipe.rank)
        )
        after = [margins(bundle, t) for t in old]
        for task, a, b in zip(old, after, margins_before, strict=True):
            moved.append(moves(a, b, task.test.labels))
        learned.append(float(margins(bundle, suite.tasks[number]).mean()))
        rows.append([suite.score(bundle, t) for t in suite.tasks])
    r = Matrix(tuple(map(tuple, rows)), tuple(range(len(suite.tasks))))
    return {
        "AP": average_performance(r), "BWT": backward_transfer(r), "LA": learning_accuracy(r),
        "left on new": statistics.mean(n for n, _ in kept), "left on old": statistics.mean(o for _, o in kept),
        "new margin": statistics.mean(learned),
        **{k: statistics.mean(m[k] for m in moved) for k in moved[0]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", nargs="+", default=["split", "permuted"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    given = parser.parse_args()
    methods = rows_of(tuple(given.strengths))
    for name in given.suites:
        found = defaultdict(list)
        for seed in given.seeds:
            suite = suite_of(name, seed)
            base = base_of(suite, seed)
            for label, method in methods.items():
                found[label].append(run(suite, base, seed, method))
                show(f"{name}, seed {seed}", label, found[label][-1:])
        for label, each in found.items():
            show(f"{name}, mean", label, each)


def show(name: str, label: str, each) -> None:
    means = {k: statistics.mean(e[k] for e in each) for k in each[0]}
    figures = (f"{k} {v:.2f}" for k, v in means.items())
    print(f"{name:16} {label:24}", *figures, sep="  ", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
