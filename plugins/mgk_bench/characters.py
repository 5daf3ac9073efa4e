"""A character language model over three kinds of text that ship with what mgk depends on.

English prose (scikit-learn's descriptions of its data sets, and the standard library's docstrings), Python
code (the standard library without its docstrings and comments) and Korean (mgk's own medical texts,
in decomposed letters). A causal transformer of two layers learns the first with all its weights and
the others as phases.
"""

from __future__ import annotations

import ast
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor, nn
from torch.nn import functional

from mgk_bench.tasks import Recipe, Suite, Task
from mgk_core.contract.bundle import OptionScores
from mgk_core.contract.errors import EnvironmentFault, InputError

LENGTH, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
TRAIN, TEST = 90_000, 8_000
BITS = 1.4426950408889634  # 1 / ln 2
KOREAN = "data/korean_medical/text/train.jsonl"
MODULES = (
    "argparse", "ast", "asyncio.base_events", "dataclasses", "datetime", "decimal", "difflib", "fractions", "functools",
    "heapq", "inspect", "pathlib", "random", "statistics", "tarfile", "textwrap", "threading", "typing", "zipfile",
)  # fmt: skip


@frozen(eq=False)
class Windows:
    """Pieces of text. ids: (n, 65): a window of 64 characters and the one that follows each."""

    ids: Tensor

    def __getitem__(self, rows: Any) -> Windows:
        return Windows(self.ids[rows])


@define(eq=False)
class Rows:
    """Training windows by row."""

    ids: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> Windows:
        """Collate rows, in the order given."""
        return Windows(self.ids[torch.tensor(rows)])


class Attention(nn.Module):
    """Causal self-attention with separate projections, so that each is a target of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, width) → the same."""
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, HEADS, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(n, t, WIDTH))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = (
            Attention(),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.Linear(4 * WIDTH, WIDTH),
        )
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, width) → the same."""
        x = x + self.attention(self.first(x))
        out: Tensor = x + self.down(functional.gelu(self.up(self.second(x))))
        return out


class Transformer(nn.Module):
    """Characters in, logits of the next ones out."""

    def __init__(self, alphabet: int) -> None:
        super().__init__()
        self.characters, self.places = (
            nn.Embedding(alphabet, WIDTH),
            nn.Embedding(LENGTH, WIDTH),
        )
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, alphabet)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, t) → (n, t, alphabet)."""
        x = self.characters(ids) + self.places(torch.arange(ids.shape[1]))
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


@define(eq=False)
class CharacterBundle:
    """The transformer and its cross-entropy, summed over characters."""

    model: nn.Module
    device: torch.device = torch.device("cpu")
    tokenizer: Any = None

    def loss(self, batch: Windows) -> tuple[Tensor, Tensor]:
        """Return (summed negative log-likelihood in nats, number of characters)."""
        total = functional.cross_entropy(
            self.outputs(batch), batch.ids[:, 1:].reshape(-1), reduction="sum"
        )
        return total, torch.tensor(float(batch.ids.shape[0] * LENGTH))

    def outputs(self, batch: Windows, positions: Tensor | None = None) -> Tensor:
        """Return logits, (n · 64, alphabet)."""
        logits: Tensor = self.model(batch.ids[:, :-1]).flatten(0, 1)
        return logits if positions is None else logits[positions]

    def score(self, items: Sequence[Any]) -> list[OptionScores]:
        """Refuse: windows have no options."""
        raise InputError(
            f"the character model cannot score the options of {len(items)} items"
        )

    def valid(self, batch: Windows) -> Tensor | None:
        """Return None: there is no padding."""
        return None

    def unpack(self, batch: Windows) -> list[Windows]:
        """Return the windows one by one."""
        return [batch[i : i + 1] for i in range(len(batch.ids))]

    def pack(self, examples: Sequence[Windows]) -> Windows:
        """Return one batch of them."""
        return Windows(torch.cat([e.ids for e in examples]))

    def save(self, directory: Path) -> None:
        """Refuse: a benchmark's network is not kept."""
        raise InputError(f"the character model is not written to {directory}")


def bits(bundle: CharacterBundle, task: Task) -> float:
    """Minus the bits per character on a task's held-out text: more is better."""
    with torch.no_grad():
        total, count = bundle.loss(task.test)
    return -BITS * float(total / count)


def suite(seed: int) -> Suite:
    """Make the suite; the seed draws the place of each kind's held-out text and the weights."""
    kinds = texts()
    alphabet = {c: i for i, c in enumerate(sorted(set("".join(kinds.values()))))}
    generator = torch.Generator().manual_seed(seed)
    tasks = []
    for name, text in kinds.items():
        ids = torch.tensor([alphabet[c] for c in text])
        start = int(torch.randint(len(ids) - TEST, (1,), generator=generator))
        rest = torch.cat([ids[:start], ids[start + TEST :]])
        train, test = _windows(rest[:TRAIN]), _windows(ids[start : start + TEST])
        digest = hashlib.sha256(train.numpy().tobytes()).hexdigest()
        tasks.append(Task(f"characters-{name}", Rows(train, digest), Windows(test)))
    settings = {
        "recipe": Recipe(epochs=4, batch_size=16, base_epochs=8),
        "width": WIDTH,
        "layers": LAYERS,
        "train": TRAIN,
    }
    build = _builder(len(alphabet))
    score: Any = bits  # it takes a bundle of its own
    return Suite(
        "characters", "bits per character", tuple(tasks), build, score, settings
    )


def _builder(alphabet: int) -> Any:
    def build(seed: int) -> CharacterBundle:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return CharacterBundle(Transformer(alphabet))

    return build


def _windows(ids: Tensor) -> Tensor:
    count = (len(ids) - 1) // LENGTH
    return torch.stack([ids[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(count)])


def texts() -> dict[str, str]:
    """Return the three kinds of text, in the order in which they are learnt."""
    found = {"english": _english(), "code": _code(), "korean": _korean()}
    for name, text in found.items():
        if len(text) < TRAIN + TEST:
            raise EnvironmentFault(
                f"the {name} text that ships has {len(text)} characters, {TRAIN + TEST} are needed"
            )
    return found


def _english() -> str:
    try:
        import sklearn.datasets
    except ImportError:
        raise EnvironmentFault(
            "the English text comes with scikit-learn; install it: pip install 'mgk[bench]'"
        ) from None
    folder = resources.files(sklearn.datasets) / "descr"
    pages = sorted(
        (f for f in folder.iterdir() if f.name.endswith(".rst")), key=lambda f: f.name
    )
    texts = [f.read_text(encoding="utf-8") for f in pages]
    return _plain(
        "\n".join([*texts, *(text for tree in _trees() for text in _docstrings(tree))])
    )


def _code() -> str:
    return _plain(
        "\n".join(ast.unparse(_without_docstrings(tree)) for tree in _trees())
    )


def _trees() -> list[ast.Module]:
    """Parse the chosen modules of the standard library; nothing of them is run."""
    folder = Path(json.__file__).parent.parent
    files = [folder / (name.replace(".", "/") + ".py") for name in MODULES]
    return [ast.parse(f.read_text(encoding="utf-8")) for f in files if f.exists()]


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(tree: ast.Module) -> list[str]:
    nodes = [n for n in ast.walk(tree) if isinstance(n, _Documented)]
    return [text for n in nodes if (text := ast.get_docstring(n)) is not None]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _korean() -> str:
    """Korean in decomposed letters (NFD): some seventy signs instead of thousands of syllables."""
    file = resources.files("mgk_phases") / KOREAN
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return "".join(
        c
        for c in unicodedata.normalize("NFD", "\n".join(r["text"] for r in rows))
        if _shown(c)
    )


def _shown(character: str) -> bool:
    """Keep decomposed Korean and ASCII."""
    return (
        character == "\n"
        or " " <= character <= "~"
        or "\u1100" <= character <= "\u11ff"
    )


def _plain(text: str) -> str:
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")
