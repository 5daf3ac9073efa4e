"""From a name to a probe: the task is found, its documents are read, its requests are built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from attrs import field, frozen
from lm_eval.api.metrics import mean
from lm_eval.tasks import TaskManager

from mgk_core.contract.bundle import Bundle, Probe, Speaks
from mgk_core.contract.errors import InputError, nearest
from mgk_harness.model import BundleModel
from mgk_harness.quiet import quiet
from mgk_harness.specs import HarnessSpec


@frozen(eq=False)
class Harness:
    """What all items of one probe share.

    tasks: as `lm_eval.evaluator.evaluate` takes them. metric, filter: which figure is the probe's.
    pooled: whether that figure is the mean over documents.
    """

    tasks: dict[str, Any] = field(repr=False)
    metric: str
    filter: str
    pooled: bool
    chat: bool
    seed: int

    def build(self, model: BundleModel, documents: dict[str, list[int]]) -> None:
        """Build the requests of these documents, as the harness's own evaluation does."""
        for name, task in self.tasks.items():
            if name in documents:
                task.set_fewshot_seed(seed=self.seed)
                task.build_all_requests(
                    samples=documents[name],
                    apply_chat_template=self.chat,
                    fewshot_as_multiturn=True,
                    chat_template=model.apply_chat_template if self.chat else None,
                    tokenizer_name=model.tokenizer_name if self.chat else "",
                )


@frozen(eq=False)
class Document:
    """One item of a probe: a document of a task, by its number."""

    harness: Harness = field(repr=False)
    task: str
    number: int


def load(spec: HarnessSpec, name: str, bundle: Bundle) -> Probe:
    """Load a task and make a probe of its documents.

    :raises InputError: no such task, folder or metric; its data cannot be read; it samples answers,
        runs code or needs pictures
    """
    if not isinstance(bundle, Speaks) or bundle.tokenizer is None:
        raise InputError(
            f"probes.{name}: a task of lm-evaluation-harness needs a language model as base"
        )
    if spec.chat and not getattr(bundle.tokenizer, "chat_template", None):
        raise InputError(
            f"probes.{name}.chat: the base has no chat template; leave chat out"
        )
    with quiet():
        tasks = _tasks(spec, name)
        for task in tasks.values():
            _configure(task, spec, name)
        harness = _harness(spec, name, tasks)
        documents = {task: _documents(tasks[task], spec.limit) for task in tasks}
        model = BundleModel(bundle)
        _built(harness, model, documents, name)
    first = next(iter(tasks.values()))
    return Probe(
        name=name,
        phase="",
        metric=f"lm-eval:{harness.metric}",
        items=tuple(_dealt(harness, documents)),
        higher_is_better=bool(first.higher_is_better().get(harness.metric, True)),
        digest=_digest(harness),
    )


def _tasks(spec: HarnessSpec, name: str) -> dict[str, Any]:
    """Find and load the tasks that a name means."""
    for folder in spec.folders:
        if not Path(folder).is_dir():
            raise InputError(f"probes.{name}.include_path: {folder}: no such folder")
    own = _from_folders(spec)
    if own is not None:
        return own
    manager = TaskManager(include_path=list(spec.folders) or None)
    if spec.task not in manager.all_tasks:
        hint = nearest(spec.task, manager.all_tasks)
        raise InputError(
            f"probes.{name}.task: lm-evaluation-harness {version('lm_eval')} has no task"
            f" {spec.task!r}{hint}; list them with 'lm_eval ls tasks', or name the folder of"
            " your own with include_path"
        )
    try:
        found: dict[str, Any] = manager.load(spec.task)["tasks"]
    except Exception as error:
        # A task's files may make datasets, the hub's client and the harness raise almost anything.
        raise InputError(
            f"probes.{name}.task: {spec.task!r} could not be loaded: {_first_line(error)};"
            " its data are read from the hub or the files that its YAML names"
        ) from error
    return found


def _from_folders(spec: HarnessSpec) -> dict[str, Any] | None:
    """Load the task from the given folders alone; None where it also needs the shipped ones.

    The index of all shipped tasks takes seconds to build.
    """
    if not spec.folders:
        return None
    own = TaskManager(include_path=list(spec.folders), include_defaults=False)
    if spec.task not in own.all_tasks:
        return None
    try:
        found: dict[str, Any] = own.load(spec.task)["tasks"]
    except Exception:  # noqa: BLE001 - loading it with the shipped tasks reports what is wrong
        return None
    return found


def _configure(task: Any, spec: HarnessSpec, name: str) -> None:
    """Set a task up as `lm_eval.simple_evaluate` does, and refuse what cannot be measured."""
    kind = task.get_config("task")
    given = task.get_config("generation_kwargs") or {}
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"probes.{name}.task: {kind!r} needs pictures or sound")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(
            f"probes.{name}.task: {kind!r} runs code that the model writes; run it with lm_eval"
            " on RUN/model, inside a sandbox"
        )
    if given.get("do_sample") or given.get("temperature"):
        raise InputError(
            f"probes.{name}.task: {kind!r} samples its answers; probes are greedy, so that"
            " two rows can be compared. Run it with lm_eval on RUN/model"
        )
    own = task.get_config("num_fewshot")
    if spec.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _harness(spec: HarnessSpec, name: str, tasks: dict[str, Any]) -> Harness:
    """Choose the figure that the probe has, which every task of a group must know."""
    first = next(iter(tasks.values()))
    figures = list(first.aggregation())
    wanted, _, filtered = spec.metric.partition(",")
    metric = wanted or figures[0]
    filters = [f.name for f in getattr(first, "_filters", ())] or ["none"]
    for one in tasks.values():
        known = list(one.aggregation())
        if metric not in known:
            raise InputError(
                f"probes.{name}.metric: task {one.get_config('task')!r} has no {metric!r}"
                f"{nearest(metric, known)}; it has {', '.join(known)}"
            )
    if filtered and filtered not in filters:
        raise InputError(
            f"probes.{name}.metric: no filter {filtered!r}; the task has {', '.join(filters)}"
        )
    pooled = all(one.aggregation()[metric] is mean for one in tasks.values())
    if len(tasks) > 1 and not pooled:
        raise InputError(
            f"probes.{name}.task: {spec.task!r} has {len(tasks)} tasks whose {metric!r} is not a"
            " mean over documents; name a single task, or another metric"
        )
    return Harness(
        tasks, metric, filtered or filters[0], pooled, spec.chat, spec.fewshot_seed
    )


def _documents(task: Any, limit: int | None) -> list[int]:
    count = len(task.eval_docs)
    return list(range(count if limit is None else min(count, limit)))


def _built(
    harness: Harness, model: BundleModel, documents: dict[str, list[int]], name: str
) -> None:
    """Build all requests once, so that what is wrong with a task is known before training."""
    try:
        harness.build(model, documents)
    except Exception as error:
        # Templates and Python functions of a task's author run here.
        raise InputError(
            f"probes.{name}.task: the requests of its documents could not be built:"
            f" {type(error).__name__}: {_first_line(error)}"
        ) from error


def _dealt(harness: Harness, documents: dict[str, list[int]]) -> Iterator[Document]:
    """Yield the first document of each task, then the second: a limit takes from all of them."""
    for turn in zip_longest(*documents.values()):
        for task, number in zip(documents, turn, strict=True):
            if number is not None:
                yield Document(harness, task, number)


def _digest(harness: Harness) -> str:
    """Digest of everything that decides the figure: requests, targets, the harness's version."""
    state = hashlib.blake2b(digest_size=32)
    facts = [version("lm_eval"), harness.metric, harness.filter, harness.chat]
    state.update(json.dumps(facts).encode())
    for name, task in harness.tasks.items():
        for one in task.instances:
            target = task.doc_to_target(one.doc)
            content = [name, one.doc_id, one.request_type, one.args, target]
            state.update(json.dumps(content, default=str, ensure_ascii=False).encode())
    return state.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def documents_of(items: Sequence[Document]) -> dict[str, list[int]]:
    """Return task → the numbers of its documents among items, in their order."""
    found: dict[str, list[int]] = {}
    for item in items:
        found.setdefault(item.task, []).append(item.number)
    return found
