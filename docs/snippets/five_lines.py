"""What surrounds the five lines of the README: a small model, and a check of what they promise."""

import mgk
import torch
from torch import nn


class Block(nn.Module):
    """Two projections with the names that the five lines target."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(24, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.v_proj(torch.tanh(self.q_proj(x)))


def training_loop(model, adapter):
    """Take a few steps towards random targets."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    live.append(model(x).detach())


torch.manual_seed(0)
model, live = Block(), []
x, y = torch.randn(8, 24), torch.randn(8, 12)
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
merged, real_merge = [], mgk.merge


def watched_merge(*args, **options):
    """Merge, and keep what the merged model computes before it is rolled back."""
    report = real_merge(*args, **options)
    merged.append(model(x).detach())
    return report


mgk.merge = watched_merge
# HERE
assert (merged[0] - live[0]).norm() / live[0].norm() < 1e-6
assert report.kept > 0.999
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
