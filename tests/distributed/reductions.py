"""Three ways to add up the gradients of ranks, on a small network with LoRA on a frozen layer.

Thirty AdamW steps of eight micro-batches of uneven length; what one process computes is the measure.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from mgk_core.contract.world import World

STEPS, MICRO, WORDS, WIDTH, RANK = 30, 8, 64, 48, 4


def batches():
    """Yield per step its micro-batches: random tokens, of which micro-batch i predicts 3 + 5 i."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield [
            torch.randint(0, WORDS, (2, 3 + 5 * i), generator=generator)
            for i in range(MICRO)
        ]


def frozen(dtype):
    """Return table, layer and head."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((WORDS, WIDTH), (WIDTH, WIDTH), (WORDS, WIDTH))
    return [
        (torch.randn(s, generator=generator) / s[1] ** 0.5).to(dtype) for s in shapes
    ]


def adapter():
    """Return A and B of a LoRA adapter, in fp32."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(RANK, WIDTH, generator=generator) / WIDTH**0.5
    return [a.requires_grad_(), torch.zeros(WIDTH, RANK).requires_grad_()]


def gradients(weights, ab, tokens):
    """Return summed loss, number of predictions, and the gradients of the sum."""
    table, layer, head = weights
    a, b = ab
    x = table[tokens[0]]
    added = ((x.float() @ a.T) @ b.T).to(layer.dtype)
    hidden = torch.tanh(x @ layer.T + added)
    total = cross_entropy((hidden @ head.T).float(), tokens[1], reduction="sum")
    count = torch.tensor(float(tokens.shape[1]))
    return [total.detach(), count, *torch.autograd.grad(total, ab)]


def in_order(world, parts):
    """Give the mean over all predictions: the sum in the order of the micro-batches."""
    _, count, *found = world.sum(MICRO, parts)
    return [g / count for g in found]


def own_sum(world, parts):
    """Give the sum over this rank's micro-batches, as an accumulating loop makes it."""
    found = None
    for i in range(world.rank, MICRO, world.size):
        part = parts(i)
        found = (
            part if found is None else [a + b for a, b in zip(found, part, strict=True)]
        )
    return found


def all_reduce(world, parts):
    """Give the mean over all predictions: each rank's own sums, added by an all-reduce."""
    found = own_sum(world, parts)
    for part in found:
        dist.all_reduce(part)
    return [g / found[1] for g in found[2:]]


def mean_of_means(world, parts):
    """Give the mean of each rank's own mean: what DDP and FSDP do by themselves."""
    _, count, *found = own_sum(world, parts)
    means = [g / count for g in found]
    for part in means:
        dist.all_reduce(part)
    return [part / world.size for part in means]


def delta(dtype, world, reduce):
    """Train; return the delta B @ A."""
    weights, ab = frozen(dtype), adapter()
    optimizer = torch.optim.AdamW(ab, lr=1e-2)
    for micro in batches():
        found = reduce(world, lambda i, m=micro: gradients(weights, ab, m[i]))
        for parameter, gradient in zip(ab, found, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return (ab[1] @ ab[0]).detach()


def measured(world):
    """Return dtype → way → ‖ΔW − ΔW of one process‖ / ‖ΔW of one process‖."""
    table = {}
    for dtype in (torch.float32, torch.bfloat16):
        alone = delta(dtype, World(), in_order)
        table[str(dtype).removeprefix("torch.")] = {
            way.__name__: float(
                (delta(dtype, world, way) - alone).norm() / alone.norm()
            )
            for way in (in_order, all_reduce, mean_of_means)
        }
    return table
