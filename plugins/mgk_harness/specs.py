"""Configuration of a probe that is a task of lm-evaluation-harness."""

from __future__ import annotations

from attrs import NOTHING, frozen

from mgk_core.contract.specs import ProbeSpec, at_least, option


@frozen(kw_only=True)
class HarnessSpec(ProbeSpec):
    """A task of lm-evaluation-harness; of a group of tasks, ``limit`` counts for each of them."""

    task: str = option(
        NOTHING, help="name of a task, a group or a tag, as `lm_eval --tasks` takes it"
    )
    include_path: str | tuple[str, ...] = option(
        (), help="folders with further task files, as `lm_eval --include_path`"
    )
    metric: str = option(
        "",
        help="the task's figure that the probe has, such as acc_norm, or with its filter"
        " exact_match,strict-match; empty: the task's first",
    )
    num_fewshot: int | None = option(
        None, at_least(0), help="examples before each question; none: the task's own"
    )
    fewshot_seed: int = option(
        1234,
        at_least(0),
        help="of the examples that are drawn; the harness's own default",
    )
    chat: bool = option(
        False,
        help="put prompts into the base's chat template (`--apply_chat_template`)",
    )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of further tasks."""
        given = self.include_path
        return (given,) if isinstance(given, str) else given
