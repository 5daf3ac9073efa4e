"""Draw the charts of README and gallery from the tables of docs/benchmarks.md, so that no figure is typed twice.

    python docs/charts.py            write docs/pictures/*.svg
    python docs/charts.py --check    exit 1 where one is out of date, and name it
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"
PLAIN, GUARD, INK, FAINT, PAPER = "#9aa0a6", "#0f8b8d", "#24292f", "#6b7280", "#fafaf8"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def rows_under(heading: str) -> list[list[str]]:
    """Return the body rows of every table in one section of benchmarks.md."""
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", text.partition(f"### {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def row(heading: str, first: str) -> list[str]:
    """Return the row of a section whose first cell begins with ``first``."""
    return next(r for r in rows_under(heading) if r[0].startswith(first))


def number(text: str) -> float:
    """Read the first number of a cell; − is a minus sign."""
    return float(re.search(r"[+−-]?\d+(\.\d+)?", text)[0].replace("−", "-"))


class Drawing:
    """An SVG that refers to no other file and is readable on light and dark pages."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 14, anchor: str = "start", fill: str = INK, bold: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", radius: float = 2) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d0d7de"/>')

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" font-family="{FONT}" role="img">'
        paper = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", paper, *self.parts, "</svg>\n"])


def default_run() -> str:
    """What each phase of the default run taught, and what is left at the end: plain merging and mgk's default."""
    naive, default = row("The real base", "naive"), row("The real base", "default")
    picture = Drawing(860, 430, "Gains of the default run and what is left of them")
    picture.text(24, 34, "Gemma 3 270M, three phases: what was learned, what is left at the end", size=18, bold=True)
    picture.text(24, 58, "gain over the untouched base in nats per token, test split, mean of three seeds", fill=FAINT)
    picture.box(24, 74, 14, 14, fill=PLAIN)
    picture.text(44, 86, "plain progressive merging")
    picture.box(240, 74, 14, 14, fill=GUARD)
    picture.text(260, 86, "mgk's default: drift-guard")
    picture.box(456, 74, 14, 14, fill="none", stroke=FAINT)
    picture.text(476, 86, "gain right after the phase that taught it")
    left, unit, y = 238, 460, 112
    for label, column in (("plain text", 2), ("dictionary", 3), ("questions", 4)):
        picture.text(24, y + 28, f"phase: {label}", bold=True)
        for cells, colour in ((naive, PLAIN), (default, GUARD)):
            gain, _, kept = cells[column].partition(", ")
            whole, share = number(gain), number(kept) if kept else 1.0
            picture.box(left, y, unit * whole, 20, fill="none", stroke=colour)
            picture.box(left, y, unit * whole * share, 20, fill=colour)
            words = f"{share:.0%} of {whole:.2f} kept".replace("%", " %") if kept else f"{whole:.2f} (last phase)"
            picture.text(left + unit * whole + 8, y + 15, words, size=13)
            y += 23
        y += 16
    picture.line(24, y - 4, 836, y - 4)
    for label, column in (("Korean", 5), ("English", 6)):
        picture.text(24, y + 28, f"the base's own {label}", bold=True)
        for cells, colour in ((naive, PLAIN), (default, GUARD)):
            change = number(cells[column])
            start = left + min(change, 0) * unit
            picture.box(start, y + 4, unit * abs(change), 14, fill=colour)
            words = f"{change:+.3f} at the end".replace("-", "−")
            picture.text(left + max(change, 0) * unit + 8, y + 16, words, size=13)
            y += 20
        y += 8
    picture.parts.append(f'<line x1="{left}" y1="104" x2="{left}" y2="{y}" stroke="{FAINT}"/>')
    picture.text(24, 420, "Source: docs/benchmarks.md, “The real base”; 100, 40 and 40 steps of LoRA rank 8, seeds 0, 1 and 2.", size=12, fill=FAINT)
    return picture.svg()


def shade(good: float) -> str:
    """Return a colour for −1 (much worse than the baseline) … 0 … 1 (much better)."""
    good = max(-1.0, min(1.0, good))
    target = (15, 139, 141) if good > 0 else (200, 80, 60)
    mixed = [round(250 + (t - 250) * 0.75 * abs(good)) for t in target]
    return "#" + "".join(f"{v:02x}" for v in mixed)


def real_dictionary() -> str:
    """Phases × probes of the run with a real dictionary: plain merging and the default."""
    rows = rows_under("A real dictionary")
    names = ("text,\nperplexity", "KCD,\naccuracy", "MMLU,\naccuracy", "base ko,\nperplexity", "base en,\nperplexity")
    picture = Drawing(860, 330, "Phases by probes with a real dictionary")
    picture.text(24, 34, "Phases × probes with a real disease dictionary (KCD), Gemma 3 270M, seed 0", size=18, bold=True)
    base = _scores(next(r for r in rows if r[0] == "baseline"))
    for x0, method, title in ((24, "naive", "plain progressive merging"), (450, "default", "mgk's default")):
        picture.text(x0, 66, title, bold=True)
        for column, name in enumerate(names):
            for line, words in enumerate(name.split("\n")):
                picture.text(x0 + 118 + 62 * column, 90 + 14 * line, words, size=10, anchor="middle", fill=FAINT)
        chosen = [r for r in rows if r[0] == "baseline" or r[0].startswith(f"{method}: ")]
        for index, cells in enumerate(chosen):
            y = 114 + 44 * index
            picture.text(x0, y + 25, cells[0].partition(": ")[2] or "baseline", size=13)
            for column, value in enumerate(_scores(cells)):
                perplexity = column in (0, 3, 4)
                better = (base[column] - value) / base[column] / 0.4 if perplexity else (value - base[column]) / 0.2
                x = x0 + 88 + 62 * column
                picture.box(x, y, 60, 40, fill=shade(better), radius=3)
                shown = f"{value:.1f}" if perplexity else f"{value:.3f}"
                picture.text(x + 30, y + 25, shown, size=13, anchor="middle", fill="#ffffff" if abs(better) > 0.75 else INK)
    picture.text(24, 316, "Teal: better than the baseline; red: worse. Source: docs/benchmarks.md, “A real dictionary”.", size=12, fill=FAINT)
    return picture.svg()


def _scores(cells: list[str]) -> list[float]:
    """Return text, KCD accuracy, MMLU accuracy, base-ko and base-en of one row."""
    kcd, text, mmlu, base = (cell.split(", ") for cell in cells[1:5])
    return [number(text[0]), number(kcd[2]), number(mmlu[1]), number(base[0]), number(base[1])]


def small_tasks() -> str:
    """Forgetting (BWT) of each method on the small tasks."""
    picture = Drawing(860, 430, "Forgetting of each method on small tasks")
    picture.text(24, 34, "Small tasks: how much of what was learned is lost later", size=18, bold=True)
    picture.text(24, 58, "minus BWT in points of accuracy; a base task and four phases, five seeds; shorter is better", fill=FAINT)
    methods = [r for r in rows_under("Small tasks") if "/" in r[1] and "–" not in r[1]]
    for index, suite in enumerate(("permuted", "rotated", "split")):
        x0 = 190 + 222 * index
        picture.text(x0, 86, suite, bold=True)
        picture.line(x0, 94, x0, 400)
        for line, cells in enumerate(methods):
            y = 100 + 27 * line
            loss = 0.0 - number(cells[index + 1].split(" / ")[1])
            if index == 0:
                picture.text(24, y + 14, cells[0], size=13)
            picture.box(x0, y, 1.9 * loss, 19, fill=GUARD if "drift-guard" in cells[0] else PLAIN)
            picture.text(x0 + 1.9 * max(loss, 0) + 6, y + 14, f"{loss:.1f}", size=12, fill=FAINT)
    picture.text(24, 420, "Source: docs/benchmarks.md, “Small tasks”.", size=12, fill=FAINT)
    return picture.svg()


def gap_cost() -> str:
    """Gap closed against cost, one dot a method: the mean over the suites of the small tasks."""
    picture = Drawing(860, 430, "Gap closed against cost, one dot a method")
    picture.text(24, 34, "Small tasks: how much of the gap to joint training each method closes, and at what cost", size=18, bold=True)
    picture.text(24, 58, "0 is plain merging, 1 is joint training; mean over four suites, five seeds; hollow: needs old data", fill=FAINT)
    left, right, top, bottom = 70, 560, 84, 380
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - (bottom - top) * tick / 1.1
        picture.line(left, y, right, y)
        picture.text(left - 8, y + 4, f"{tick:g}", size=12, anchor="end", fill=FAINT)
    for tick in (1.0, 1.5, 2.0, 2.5):
        x = left + (right - left) * (tick - 0.7) / 1.9
        picture.text(x, bottom + 20, f"{tick:g}×", size=12, anchor="middle", fill=FAINT)
    picture.text((left + right) / 2, bottom + 38, "CPU time of training and merging, plain merging = 1", size=12, anchor="middle", fill=FAINT)
    for place, (name, cost, gap) in enumerate(_gaps(), start=1):
        x = left + (right - left) * (cost - 0.7) / 1.9
        y = bottom - (bottom - top) * gap / 1.1
        colour = GUARD if "drift-guard" in name else PLAIN
        old = "replay" in name or "joint" in name
        picture.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{PAPER if old else colour}" stroke="{colour}" stroke-width="2"/>')
        aside = -9 if place % 4 == 1 else 9  # two variants of drift-guard are nearly at one place
        picture.text(x + aside, y + 4, str(place), size=11, anchor="end" if aside < 0 else "start")
        picture.text(590, 76 + 24 * place, f"{place}  {name}", size=13)
        picture.text(836, 76 + 24 * place, f"{gap:.2f} at {cost:.2f}×".replace("-", "−"), size=12, anchor="end", fill=FAINT)
    return picture.svg()


def _gaps() -> list[tuple[str, float, float]]:
    """Return method, cost (middle of its range) and mean gap closed of each row of the small tasks, best first."""
    found = []
    for cells in rows_under("Small tasks"):
        if "/" not in cells[1]:
            continue
        costs = [number(part) for part in cells[5].split("–")]
        gaps = [number(part) for part in cells[7].split(" / ")]
        found.append((cells[0], sum(costs) / len(costs), sum(gaps) / len(gaps)))
    return sorted(found, key=lambda row: -row[2])


def architecture() -> str:
    """The folders, and the core's rooms from top to ground."""
    picture = Drawing(860, 520, "The folders of mgk, and the rooms of its core")
    boxes = (("cli/", "the command line: text only", 24), ("phases/", "shipped pipelines and data", 228), ("mgk/", "import mgk: public names", 432))
    for name, words, x in boxes:
        picture.box(x, 20, 192, 54, fill="#ffffff", stroke=PLAIN, radius=6)
        picture.text(x + 14, 42, name, bold=True)
        picture.text(x + 14, 62, words, size=12, fill=FAINT)
    picture.text(324, 96, "↓ import", size=12, anchor="middle", fill=FAINT)
    picture.box(24, 104, 600, 400, fill="#eef6f6", stroke=GUARD, radius=8)
    picture.text(38, 128, "mgk_core/", bold=True)
    picture.text(122, 128, "a room imports only what is below it", size=12, fill=FAINT)
    rooms = (
        ("testing", "conformance kit for plugin authors"), ("tools", "what one command does, before or after a run"),
        ("run", "the nine steps of a phase, resume, transition"), ("host", "finds, loads and calls plugins"),
        ("config", "from TOML to a checked pipeline"),
    )  # fmt: skip
    for index, (name, words) in enumerate(rooms):
        _room(picture, 38, 140 + 52 * index, 572, name, words)
    _room(picture, 38, 400, 280, "record", "what a run writes")
    _room(picture, 330, 400, 280, "model", "working on a torch model")
    _room(picture, 38, 452, 572, "contract", "what plugins promise and get")
    picture.box(676, 104, 160, 400, fill="#ffffff", stroke=PLAIN, radius=8)
    picture.text(690, 128, "plugins/", bold=True)
    for line, words in enumerate(("lora, merge, sgd", "hf, text, peft", "retention, bench", "validation", "textmodel", "… and yours")):
        picture.text(690, 156 + 20 * line, words, size=13)
    for y, words, arrow in ((318, "called by host", "→"), (420, "import contract,", "←"), (440, "model and testing", "")):
        picture.text(690, y, words, size=12, fill=FAINT)
        picture.text(650, y, arrow, size=22, anchor="middle", fill=GUARD)
    return picture.svg()


def _room(picture: Drawing, x: float, y: float, width: float, name: str, words: str) -> None:
    public = name in ("testing", "model", "contract")
    picture.box(x, y, width, 44, fill="#ffffff", stroke=GUARD if public else PLAIN, radius=5)
    picture.text(x + 12, y + 27, name, bold=True, fill=GUARD if public else INK)
    picture.text(x + 92, y + 27, words, size=13)


CHARTS = {"architecture.svg": architecture, "default-run.svg": default_run, "gap-cost.svg": gap_cost, "real-dictionary.svg": real_dictionary, "small-tasks.svg": small_tasks}


def main() -> int:
    """Write the charts, or check them."""
    stale = [n for n, draw in CHARTS.items() if not (PICTURES / n).exists() or (PICTURES / n).read_text("utf-8") != draw()]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/pictures/{name}: out of date; run: python docs/charts.py", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (PICTURES / name).write_text(CHARTS[name](), encoding="utf-8")
        print(PICTURES / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
