"""A bundle as the harness's `LM`: its requests become items that the bundle scores together.

Texts are cut as the harness's own ``hf`` model cuts them, so that both give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mgk_core.contract.bundle import Choice, Speaks, Tokens

CHUNK = 32
"""Tokens that are generated before the text is checked for stop strings."""
TOGETHER = 16
"""Prompts that are continued in one batch."""

Encoded = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), ids of the context, ids of the continuation), as the harness has it."""


@frozen
class Asked:
    """A prompt with the continuations that requests ask for. places: their numbers."""

    prompt: tuple[int, ...]
    options: list[tuple[int, ...]]
    places: list[int]


class BundleModel(TemplateLM):  # type: ignore[misc] # lm_eval has no types
    """What the harness asks. greedy: whether to report which continuations are the likeliest.

    That takes a pass of its own for each, and only few tasks read it.
    """

    def __init__(self, bundle: Speaks, *, greedy: bool = False) -> None:
        super().__init__()
        self.bundle, self.greedy = bundle, greedy
        self.tokenizer: Any = bundle.tokenizer
        self._device = bundle.device

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        """Positions that the model has."""
        config = getattr(self.bundle.model, "config", None)
        return int(resolve_max_length(config, self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's own cache of requests, which mgk does not use."""
        return "mgk"

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: FBT001 - the harness's own
        **_: Any,
    ) -> list[int]:
        """Return a text's ids; BOS is never put before one that begins with it."""
        options = {}
        if add_special_tokens is not None:
            options["add_special_tokens"] = add_special_tokens
        elif has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            options["add_special_tokens"] = False
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(
        self,
        chat_history: list[dict[str, str]],
        add_generation_prompt: bool = True,  # noqa: FBT001, FBT002 - the harness's own
    ) -> str:
        """Return a chat as text, in the markup that the run is trained in."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether it is the likeliest) of each continuation."""
        found: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=True
        )
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = list(self._asked(requests))
        items = [Choice(one.prompt, tuple(one.options), 0) for one in asked]
        found = [(0.0, True)] * len(requests)
        for one, scores in zip(asked, self.bundle.score(items), strict=True):
            for place, option, logprob in zip(
                one.places, one.options, scores.logprob, strict=True
            ):
                likeliest = self.greedy and self._is_likeliest(one.prompt, option)
                found[place] = (logprob, likeliest)
        return found

    def _asked(self, requests: Sequence[Encoded]) -> Iterator[Asked]:
        """Gather neighbouring requests of one context, which is then computed once."""
        last: Asked | None = None
        for place, (_, context, continuation) in enumerate(requests):
            if (
                not continuation
            ):  # its tokens merged with the context's: nothing to score
                continue
            option = tuple(continuation[-self.max_length :])
            prompt = tuple(context[-(self.max_length + 1 - len(option)) :])
            if last is not None and last.prompt == prompt:
                last.options.append(option)
                last.places.append(place)
                continue
            if last is not None:
                yield last
            last = Asked(prompt, [option], [place])
        if last is not None:
            yield last

    @torch.no_grad()
    def _is_likeliest(self, prompt: tuple[int, ...], option: tuple[int, ...]) -> bool:
        """Whether greedy decoding would give these tokens."""
        ids = (*prompt, *option)
        batch = self.bundle.pack([Tokens(ids, ids)])
        first = len(prompt) - 1
        places = torch.arange(first, first + len(option), device=self.bundle.device)
        chosen = self.bundle.outputs(batch, places).argmax(-1)
        return tuple(chosen.tolist()) == option

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's length."""
        windows = list[Encoded]()
        owners = list[int]()
        for owner, request in enumerate(requests):
            for context, continuation in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            ):
                windows.append((("", ""), context, continuation))
                owners.append(owner)
        sums = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows)
        for owner, score in zip(owners, scores, strict=True):
            sums[owner] += score[0]
        return sums

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Continue each context greedily until one of its stop strings, or a turn's end."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: len(prompts[i]))
        found = [""] * len(requests)
        for start in range(0, len(order), TOGETHER):
            group = order[start : start + TOGETHER]
            wanted = [normalize_gen_kwargs(requests[i].args[1]) for i in group]
            texts = self._continued([prompts[i] for i in group], wanted)
            for i, text in zip(group, texts, strict=True):
                found[i] = text
        return found

    def _continued(
        self, prompts: Sequence[list[int]], wanted: Sequence[Any]
    ) -> list[str]:
        """Continue prompts a chunk of tokens at a time, until all have stopped."""
        limits = [int(options["max_gen_toks"]) for options in wanted]
        stops = [[*options["until"], self._end_of_text()] for options in wanted]
        cut = [
            prompt[-(self.max_length - limit) :]
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        made: list[list[int]] = [[] for _ in prompts]
        running = list(range(len(prompts)))
        while running:
            size = min(CHUNK, *(limits[i] - len(made[i]) for i in running), CHUNK)
            answers = self.bundle.generate(
                [[*cut[i], *made[i]] for i in running], max_new_tokens=size
            )
            still = list[int]()
            for i, ids in zip(running, answers, strict=True):
                made[i] += ids
                ended = len(ids) < size or len(made[i]) >= limits[i]
                text = self._text(made[i])
                if not ended and not any(stop in text for stop in stops[i] if stop):
                    still.append(i)
            running = still
        return [
            postprocess_generated_text(self._text(ids), stop, None)
            for ids, stop in zip(made, stops, strict=True)
        ]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _end_of_text(self) -> str:
        return str(self.tokenizer.decode([self.eot_token_id]))
