"""The events that an observer gets, and their fields: the table behind ``reference/events.md``."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class Event:
    """One kind of event. kept: whether it is written to metrics.jsonl; fields: name → meaning."""

    summary: str
    fields: Mapping[str, str] = field(factory=dict)
    kept: bool = False


_PHASE = {
    "phase": "name of the phase; `base` before the first, empty where it is about the run"
}
_STEP = {**_PHASE, "step": "optimizer steps of the phase so far"}

EVENTS: dict[str, Event] = {
    "load": Event(
        "The base, a phase's data or a probe is being loaded, or the model is being saved.",
        {**_PHASE, "what": "`base`, `data`, `probe` or `save`", "type": "type in the configuration",
         "device": "device of the base"},
    ),
    "part": Event(
        "Another part of the work begins (loading, training, evaluation, merge …).",
        {"part": "its name"},
    ),
    "phase": Event(
        "A phase begins or has ended.",
        {**_PHASE, "index": "number of the phase, from 0", "title": "its title",
         "state": "`enter` or `exit`", "result": "at `exit`: how it ended, see `Outcome`"},
        kept=True,
    ),
    "step": Event(
        "Steps were logged, every `train.log_every` and at the last one.",
        {
            **_STEP, "steps": "last step of this training", "loss": "mean over what was learned since the last event;"
            " None where no step was finite", "terms": "mean sum of the loss terms; None likewise",
            "grad_norm": "2-norm of the last good gradient before clipping, or None", "lr": "learning rate of the last step",
            "skipped": "steps left out because something was not finite", "count": "tokens or samples seen",
            "unit": "`tokens`, `samples`, or what the objective counts: `pairs`, `answers`", "seconds": "since the last event", "per_second": "count per second, or None",
            "rss": "memory of the process now, bytes", "rss_peak": "its peak, bytes",
            "cuda_allocated": "on CUDA: bytes in tensors", "cuda_reserved": "bytes held by the allocator",
            "cuda_peak": "largest bytes in tensors",
            "figures": "means of the objective's own figures, by name; absent for the base's own loss",
        },
        kept=True,
    ),
    "dev": Event(
        "The loss on dev was measured (`train.eval_every`).",
        {**_STEP, "loss": "mean over dev", "seconds": "time it took"},
        kept=True,
    ),
    "early_stop": Event(
        "Training ended because the loss on dev did not improve (`train.patience`).",
        {**_STEP, "steps": "steps that were planned", "best_step": "step with the best loss on dev",
         "best_loss": "that loss"},
        kept=True,
    ),
    "checkpoint": Event("A checkpoint was written.", dict(_STEP)),
    "drift": Event(
        "The observer `alarm` measured how far each layer moved.",
        {**_STEP, "layers": "weight → tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)", "norms": "weight → ‖ΔW‖ / ‖W‖",
         "drift": "drift of the layer that moved most; None without statistics", "relative": "largest ‖ΔW‖ / ‖W‖",
         "layer": "the layer that moved most"},
        kept=True,
    ),
    "alarm": Event(
        "A layer drifted further than the observer `alarm` allows.",
        {**_STEP, "text": "the message", "drift": "drift of the layer", "relative": "largest ‖ΔW‖ / ‖W‖",
         "layer": "the layer"},
        kept=True,
    ),
    "merge": Event(
        "An adapter was merged; gates have not judged it yet.",
        {**_PHASE, "rule": "merge rule", "scale": "factor on the deltas", "kept": "share of the delta in the weights",
         "kept_total": "the same with the residual", "max_error": "largest rounding error",
         "relative": "‖ΔW‖ / ‖W‖ over all weights", "warnings": "list of texts"},
        kept=True,
    ),
    "verify": Event(
        "Merged and unmerged outputs were compared.",
        {**_PHASE, "error": "relative 2-norm of the difference", "bound": "tolerance from rounding",
         "ok": "whether the error is within it"},
    ),
    "evaluation": Event(
        "A row of the retention matrix was measured.",
        {**_PHASE, "row": "name of the row", "scores": "list of scores, each as a mapping without `per_item`",
         "live": "true: the adapter was attached and not merged", "kept_apart": "true: the adapter stays beside the base"},
        kept=True,
    ),
    "gate": Event(
        "A gate judged the merged model.",
        {**_PHASE, "accept": "whether it accepts", "notes": "list of texts", "refusals": "list of refusals as mappings"},
        kept=True,
    ),
    "recover": Event(
        "A recovery is tried after a refusal.",
        {**_PHASE, "method": "the entry's type", "action": "`propose`, `train`, `keep_apart` or `stop`"},
    ),
    "note": Event("Something that the user should know.", {**_PHASE, "text": "the message"}),
    "activity": Event("The work that loops count under has a new name.", {"what": "the name"}),
    "progress": Event(
        "A long loop counts.",
        {"what": "what is being done", "done": "how many", "total": "of how many", "unit": "of what",
         "seconds": "since it began"},
    ),
    "stopping": Event(
        "The run was asked to stop; it writes a checkpoint first.",
        {"why": "`signal` or `time` (`--minutes`)"},
    ),
    "time": Event("The run has ended: seconds by part of the work.", {"*": "each part"}, kept=True),
}  # fmt: skip
"""In the order in which a run sends them."""


__all__ = ["EVENTS", "Event"]
