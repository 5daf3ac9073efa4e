"""A training step of the reference network: mgk's own loop against PEFT in a bare loop.

Both train LoRA of rank 8 on layers 1 and 2 with plain SGD and batches of 16. PEFT's loop has its
batches ready and does nothing but zero_grad, forward, loss, backward, step. mgk's is the trainer that
``mgk run`` uses: it chooses rows, makes the batch, sets the learning rate, checks that all is finite,
accounts for the loss and reports it every ten steps. The two take turns, block by block.

    OMP_NUM_THREADS=1 python benchmarks/step_reference.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.adapter import state_of
from mgk_core.contract.context import PhaseContext, StepContext
from mgk_core.contract.sampling import Order
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.model.device import set_up
from mgk_core.record.checkpoint import Progress
from mgk_core.record.events import Events
from mgk_core.run.training import Trainer

BATCH = 16


def phase(hooks: Hooks, device: torch.device, gradients: str) -> PhaseContext:
    """Enter the reference pipeline's first phase, as a run does."""
    overrides = {
        "phases.plain_text": {"step": {"type": "standard", "gradients": gradients}}
    }
    config = resolve(
        load_tree("textmodel", overrides=overrides), hooks.plugins.registry
    ).config
    bundle = hooks.build_model(config.base, device)
    ctx = PhaseContext(config, config.phases[0], 0, bundle, device, Path())
    torch.manual_seed(ctx.seed)
    ctx.adapter = hooks.attach_adapter(bundle.model, ctx.phase.adapter, "plain_text")
    state_of(bundle.model).adapters.append(ctx.adapter)
    ctx.data = hooks.load_data(ctx.phase.data, bundle)
    ctx.optimizer = hooks.make_optimizer(ctx.adapter, ctx.phase.optimizer)
    ctx.steps = 10**9
    return ctx


class Clock:
    """Adds up the time spent in a callable."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner, self.seconds, self.calls = inner, 0.0, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        began = time.perf_counter()
        try:
            return self.inner(*args)
        finally:
            self.seconds += time.perf_counter() - began

    @staticmethod
    def cost() -> float:
        """Seconds that a clock itself takes at each call and does not count; the least of ten tries."""
        tries = []
        for _ in range(10):
            clock = Clock(lambda *_: None)
            began = time.perf_counter()
            for _ in range(1000):
                clock(None)
            tries.append((time.perf_counter() - began - clock.seconds) / 1000)
        return min(tries)


def mgk_loop(
    hooks: Hooks, device: torch.device, gradients: str
) -> tuple[Callable[[int], None], Trainer]:
    """Return what runs n further steps of mgk's trainer."""
    ctx = phase(hooks, device, gradients)
    step = hooks.make_step(StepContext(ctx, ()))
    trainer = Trainer(ctx, step, Events(), Progress(), lambda: None, lambda: False)

    def run(n: int) -> None:
        trainer.run(trainer.progress.step + n)

    return run, trainer


def peft_loop(hooks: Hooks, device: torch.device) -> Callable[[int], None]:
    """Return what runs n further steps of a bare loop with PEFT and torch.optim.SGD."""
    import peft

    ctx = phase(hooks, device, "autograd")
    train = ctx.data.train
    batches = [
        train.batch(list(range(i, i + BATCH))) for i in range(0, len(train), BATCH)
    ]
    ctx.adapter.detach()
    settings = peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["layer1", "layer2"]
    )
    model = peft.get_peft_model(ctx.model, settings).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=ctx.phase.optimizer.lr
    )
    done = 0

    def run(n: int) -> None:
        nonlocal done
        for _ in range(n):
            batch = batches[done % len(batches)]
            done += 1
            optimizer.zero_grad()
            loss = mse_loss(model(batch.inputs), batch.targets, reduction="sum") / BATCH
            loss.backward()
            optimizer.step()

    return run


def timed(run: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Microseconds a step: the process's CPU time on the CPU, where others may be at work; wall time elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - began) / steps * 1e6


def outside_share(
    hooks: Hooks, device: torch.device, steps: int
) -> tuple[float, float]:
    """Return shares of the loop's time outside batch and step, and outside batch, gradients and the weights' change.

    Batch is choosing its rows and collating them; the step is forward, backward and update. The second
    figure leaves out of it what surrounds the bare change of the weights: dividing by the count, the norm,
    the check that all is finite, the schedule. What the clocks themselves cost is taken off.
    """
    run, trainer = mgk_loop(hooks, device, "auto")
    train, step, cost = trainer.ctx.data.train, trainer.step, Clock.cost()
    run(100)
    kept, choose = type(train).batch, Order.rows
    batch, rows, whole = (
        Clock(lambda rows: kept(train, rows)),
        Clock(choose),
        Clock(step),
    )
    type(train).batch = lambda _, rows: batch(rows)
    Order.rows = lambda *given: rows(*given)  # noqa: PLW0108 - a function binds its object, a clock does not
    trainer.step = whole

    def measure(*clocks: Clock) -> float:
        for clock in (batch, rows, whole, *clocks):
            clock.seconds, clock.calls = 0.0, 0
        began = time.perf_counter()
        run(steps)
        total = time.perf_counter() - began
        own = sum(c.calls for c in clocks) * cost
        inner = sum(c.seconds for c in clocks) if clocks else whole.seconds
        return 1 - (batch.seconds + rows.seconds + inner) / (
            total - own - 3 * steps * cost
        )

    loop = measure()
    inner = step.step  # the plugin's own, inside what checks its return values
    inner.gradient_of, inner.update = Clock(inner.gradient_of), Clock(inner.update)
    strict = measure(inner.gradient_of, inner.update)
    type(train).batch, Order.rows = kept, choose
    return loop, strict


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--blocks", type=int, default=100, help="blocks of each kind, taking turns"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    device = torch.device(args.device)
    set_up(device, threads=args.threads, deterministic=True)
    hooks = Hooks(load_plugins())
    loops = {
        "PEFT + torch.optim.SGD, bare loop": peft_loop(hooks, device),
        "mgk, autograd": mgk_loop(hooks, device, "autograd")[0],
        "mgk": mgk_loop(hooks, device, "auto")[0],
    }
    for run in loops.values():
        run(50)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.blocks):
        for name, run in loops.items():
            times[name].append(timed(run, args.steps, device))
    first = next(iter(times.values()))
    print(
        f"torch {torch.__version__}, {device}, {args.threads} thread(s), {args.blocks} blocks of {args.steps} steps in turn"
    )
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, found, strict=True))
        print(
            f"{name:36s} median {statistics.median(found):7.0f} µs  least {min(found):7.0f} µs  speed {ratio:.2f}x"
        )
    shares = [outside_share(hooks, device, 2000) for _ in range(5)]
    loop, strict = (statistics.median(s[i] for s in shares) for i in (0, 1))
    print(
        f"share of the loop outside batch, forward, backward and update, 2,000 steps, median of 5: {loop:.1%}"
    )
    print(
        f"the same with all of the update but the change of the weights counted as outside: {strict:.1%}"
    )


if __name__ == "__main__":
    main()
