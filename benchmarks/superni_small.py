"""A small real table: five short tasks of SuperNI on Gemma 3 270M, at a size of minutes a cell instead of CPU hours.

    MGK_REALDATA=… OMP_NUM_THREADS=1 python benchmarks/superni_small.py --results results --methods naive joint drift-guard

The five tasks are those of SuperNI-15 whose examples fit into 96 tokens, in the relative order of its order 1: nothing
but a few inputs is cut. 64 training examples a task in batches of 8, two epochs; 24 test items, of which 12 are also
answered freely for Rouge-L. What it cannot show: fifteen tasks, long inputs, thousands of examples. Cells that are in
the results folder are not run again.
"""

import argparse
import os
import tempfile
from pathlib import Path

from mgk_bench.folder import find_suite
from mgk_bench.forgetting import tell
from mgk_bench.methods import chosen_texts
from mgk_bench.output import write_all
from mgk_bench.results import Job, jobs_of, run_jobs
from mgk_bench.table import as_json_lines, as_text, lines
from mgk_bench.text_cell import Settings

NAME = "superni-short"
TASKS = (
    "task363_sst2_polarity_classification",
    "task1510_evalution_relation_extraction",
    "task639_multi_woz_user_utterance_generation",
    "task591_sciq_answer_generation",
    "task875_emotion_classification",
)
SETTINGS = Settings(train=64, test=24, tokens=96, generate=12, epochs=2.0)


def make_suite(parent: Path) -> Path:
    """Link the five tasks into a suite folder of their own."""
    folder = parent / NAME
    folder.mkdir()
    for number, task in enumerate(TASKS):
        # Without an orders.json the order is alphabetical: the numbers make it that of TASKS.
        source = Path(os.environ["MGK_REALDATA"], "continual", "superni", task)
        (folder / f"{number}-{task}").symlink_to(source.resolve())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--methods", nargs="+", default=())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="superni-") as temporary:
        folder = find_suite(str(make_suite(Path(temporary))))
        order, _ = folder.order(None)
        methods = chosen_texts(tuple(given.methods))
        jobs = jobs_of(given.results, folder, order, SETTINGS, methods, given.seeds)

        def done(job: Job) -> None:
            tell(f"{job.method.name}, seed {job.seed}: done")

        cells = run_jobs(jobs, 1, lambda _count: None, done)
    found = lines(cells)
    print(as_text(found))
    if given.out is not None:
        settings = {"settings": SETTINGS, "tasks": TASKS}
        write_all(given.out, found, "\n".join(as_json_lines(cells, settings)))


if __name__ == "__main__":
    main()
