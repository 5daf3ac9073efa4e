"""Configuration of the kinds of text data."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import frozen

from mgk_core.contract.errors import nearest
from mgk_core.contract.specs import ProbeSpec, Spec, at_least, between, one_of, option
from mgk_text.layouts import AUTO, NAMES
from mgk_text.similarity import NAMES as NAMES_OF_METRICS

Source = str | tuple[str, ...]
"""A file, folder or glob, ``package:PACKAGE/PATH``, ``hub:OWNER/NAME?config=…&split=…``, or several."""

CALIBRATION = "option_calibration"
"""Metric of mgk_validation over the options of questions."""

DIRECTIONS = ("en-ko", "ko-en", "ko-definition", "definition-ko")


@frozen(kw_only=True)
class TextDataSpec(Spec):
    """What every kind of text data shares: sources, columns, splits, length, the base's probes."""

    kind: ClassVar[str] = "text"

    train: Source = option(
        (),
        help="files, folders, globs, package:PACKAGE/PATH, or hub:OWNER/NAME?config=NAME&split=NAME",
    )
    dev: Source = option(
        (), help="for choosing the best step; where empty, dev_share of train"
    )
    test: Source = option((), help="for the probe; where empty, test_share of train")
    dev_share: float = option(
        0.0, between(0, 0.5), help="share of train held out as dev where dev is empty"
    )
    test_share: float = option(
        0.0, between(0, 0.5), help="share of train held out as test where test is empty"
    )
    columns: dict[str, str] = option(
        {}, help="field = column, where a file names its columns otherwise"
    )
    layout: str = option(
        AUTO,
        one_of(*NAMES),
        help="names of the columns; auto: recognised from the columns",
    )
    encoding: str = option(
        "",
        help="of text files, such as cp949; empty: UTF-8, or UTF-16 and CP949 by content",
    )
    delimiter: str = option("", help="of CSV and TSV files; empty: recognised")
    header: int | None = option(
        None,
        at_least(0),
        help="line of the column names in CSV and TSV files; 0: none, columns are 1, 2, …",
    )
    skip_bad_rows: bool = option(
        False, help="leave out and count rows that cannot be read, instead of stopping"
    )
    normalise: str = option(
        "NFC", one_of("NFC", "none"), help="Unicode normal form of every text"
    )
    weights: tuple[float, ...] = option(
        (),
        help="one for each source of train: 2 takes each row twice, 0.3 takes 30 % of the rows",
    )
    interleave: bool = option(
        False,
        help="alternate between the sources of train, so that limit takes from all of them",
    )
    deduplicate: bool = option(
        False, help="leave out training rows that are there already"
    )
    contamination: str = option(
        "note",
        one_of("note", "drop", "refuse"),
        help="what happens to training rows that share text with held-out rows",
    )
    contamination_words: int = option(
        13, at_least(2), help="how many words in a row count as shared text"
    )
    limit: int | None = option(None, at_least(1), help="train on the first N rows only")
    stream: bool = option(
        False,
        help="read training rows when they are needed: for .jsonl and .parquet files larger than memory",
    )
    max_length: int = option(
        512, at_least(8), help="most tokens of one example, including its prompt"
    )
    seed: int = option(
        0, at_least(0), help="of what is drawn: held-out shares, distractors"
    )
    probe: str = option("", help="name of the probe; default: the data's type")
    kl_items: int = option(
        0,
        at_least(0),
        help="test examples on which the KL divergence from the untouched base is measured",
    )
    cache: bool = option(
        True,
        help="keep tokenised data on disk ($MGK_CACHE, or the user's cache directory)",
    )
    base_probes: dict[str, str] = option(
        {}, help="probe name = source of texts that no phase trains on"
    )
    base_questions: dict[str, str] = option(
        {}, help="probe name = source of questions that no phase trains on"
    )
    base_layout: str = option(AUTO, one_of(*NAMES), help="layout of base_questions")
    calibration: Source = option((), help="texts that represent what the base knew")
    calibration_rows: int = option(
        48, at_least(1), help="how many of them are used, spread evenly"
    )
    calibration_tokens: int = option(
        64, at_least(8), help="most tokens of one calibration text; longer ones are cut"
    )

    @property
    def readable(self) -> tuple[str, ...]:
        """The kinds of layouts that this type reads, its own first."""
        return (self.kind,)

    @property
    def probe_name(self) -> str:
        """The probe's name; give it where a pipeline has two phases of one type."""
        return self.probe or self.type

    def __attrs_post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise ValueError(
                f"delimiter: expected one character, got {self.delimiter!r}"
            )
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(
                f"weights: expected numbers above 0, got {list(self.weights)}"
            )


SHIPPED = tuple(
    f"package:mgk_phases/data/korean_medical/base/probe_{language}.jsonl"
    for language in ("ko", "en")
)


@frozen(kw_only=True)
class TextProbeSpec(ProbeSpec):
    """Perplexity of texts that no phase trains on, in pieces of at most ``max_length`` tokens."""

    source: Source = option(
        SHIPPED,
        help="texts, as data.train takes them; default: Korean and English ones of mgk",
    )
    max_length: int = option(128, at_least(8), help="most tokens of a piece")


@frozen(kw_only=True)
class AutoSpec(TextDataSpec):
    """Any of the types below, recognised from the columns of ``train``; name a type for its own keys."""


@frozen(kw_only=True)
class PlainTextSpec(TextDataSpec):
    """Plain text, packed into rows of a fixed number of tokens; everything is learnt."""

    length: int = option(128, at_least(8), help="tokens of a packed row")
    overflow: str = option(
        "split", one_of("split", "error", "drop"), help="texts longer than max_length"
    )
    end_documents: bool = option(
        True,
        help="learn the tokenizer's end-of-sequence token after each text, so that answers end",
    )
    txt_unit: str = option(
        "paragraph",
        one_of("paragraph", "line", "file"),
        help="what one text of a .txt file is",
    )


@frozen(kw_only=True)
class StyledSpec(TextDataSpec):
    """What all data with prompts share: only answers are learnt."""

    style: str = option(
        "auto",
        one_of("auto", "chat", "plain"),
        help="auto: chat turns if the base has a chat template, else plain text",
    )
    overflow: str = option(
        "error", one_of("error", "drop"), help="examples longer than max_length"
    )


@frozen(kw_only=True)
class PromptedSpec(StyledSpec):
    """What data whose answers can also be generated share. has_options: whether options are scored."""

    has_options: ClassVar[bool] = True

    generate: int = option(
        40,
        at_least(0),
        help="test items whose answer is also generated, in the first and last row",
    )
    new_tokens: int = option(24, at_least(1), help="most tokens of a generated answer")
    metrics: tuple[str, ...] = option(
        (),
        help="further probes of generated answers: "
        + ", ".join(NAMES_OF_METRICS)
        + f"; of options: {CALIBRATION}",
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        known = (*NAMES_OF_METRICS, CALIBRATION)
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(
                    f"metrics: expected some of {', '.join(known)},"
                    f" got {metric!r}{nearest(metric, known)}"
                )
        if CALIBRATION in self.metrics and not self.has_options:
            raise ValueError(
                f"metrics: {CALIBRATION} needs options, and data of type {self.type!r} have none"
            )
        generated = [m for m in self.metrics if m != CALIBRATION]
        if generated and not self.generate:
            raise ValueError(
                f"metrics: {generated[0]} needs generated answers; set generate above 0"
            )


@frozen(kw_only=True)
class DictionarySpec(PromptedSpec):
    """Dictionary entries: term, foreign term, definition; each direction is an example."""

    kind: ClassVar[str] = "dictionary"

    directions: tuple[str, ...] = option(
        ("en-ko",), help="what is learnt from what: " + ", ".join(DIRECTIONS)
    )
    probe_direction: str = option(
        "en-ko", one_of(*DIRECTIONS), help="what the probe asks"
    )
    distractors: int = option(
        4, at_least(1), help="wrong options of the probe, from the same specialty"
    )

    @property
    def needs_definition(self) -> bool:
        """Whether what is learnt or asked includes the definition."""
        return any("definition" in d for d in (*self.directions, self.probe_direction))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.directions or not set(self.directions) <= set(DIRECTIONS):
            raise ValueError(
                f"directions: expected some of {', '.join(DIRECTIONS)}, got {list(self.directions)}"
            )


@frozen(kw_only=True)
class McqSpec(PromptedSpec):
    """Multiple-choice questions; learnt is the right option's content, its letter, or a reasoning first."""

    kind: ClassVar[str] = "mcq"

    target: str = option(
        "content",
        one_of("content", "letter", "reasoning"),
        help="what is learnt and scored",
    )
    show_options: bool = option(
        True, help="list the options in the prompt, as an examination does"
    )
    answers: str = option(
        "auto",
        one_of("auto", "letter", "0", "1", "text"),
        help="how the file gives answers: letters, numbers from 0 or 1, the option's text",
    )
    contrast: float = option(
        0.0,
        at_least(0),
        help="weight of telling the right option from the wrong ones, beside saying it; 0: off",
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.contrast and self.target == "reasoning":
            raise ValueError(
                "contrast: needs options that are scored as they are learnt; target 'reasoning' has none"
            )
        if self.target != "content" and not self.show_options:
            raise ValueError(
                f"show_options: target {self.target!r} needs the options in the prompt"
            )


def _chat_style() -> Any:
    return option(
        "chat",
        one_of("auto", "chat", "plain"),
        help="chat: in turns, a base without a chat template gets one; plain: as plain text",
    )


def _overflow() -> Any:
    return option(
        "error",
        one_of("error", "drop", "truncate"),
        help="examples longer than max_length; truncate cuts their ends off, and counts what is lost",
    )


@frozen(kw_only=True)
class ChatSpec(PromptedSpec):
    """Chat logs: messages of system, user, assistant and tools; the assistant's turns are learnt."""

    kind: ClassVar[str] = "chat"
    has_options: ClassVar[bool] = False

    style: str = _chat_style()
    overflow: str = _overflow()

    @property
    def readable(self) -> tuple[str, ...]:
        """Chats and instructions alike: both become dialogues."""
        return (
            self.kind,
            *(kind for kind in ("chat", "instruction") if kind != self.kind),
        )


@frozen(kw_only=True)
class ImageChatSpec(ChatSpec):
    """Chats that show pictures, for a base with a vision tower; the assistant's turns are learnt."""

    kind: ClassVar[str] = "image-chat"

    style: str = option(
        "chat", one_of("chat"), help="chat: pictures are shown in turns"
    )
    overflow: str = option(
        "error", one_of("error", "drop"), help="examples longer than max_length"
    )
    max_length: int = option(
        1024, at_least(8), help="most tokens of one example, with those of its pictures"
    )

    @property
    def readable(self) -> tuple[str, ...]:
        """Chats with pictures; a row without any is one too."""
        return (self.kind,)


@frozen(kw_only=True)
class InstructionSpec(ChatSpec):
    """Instructions with an answer each, such as Alpaca's; the answer is learnt."""

    kind: ClassVar[str] = "instruction"


@frozen(kw_only=True)
class PreferenceSpec(StyledSpec):
    """Answers to one prompt, one chosen and one rejected, or labelled good and bad."""

    kind: ClassVar[str] = "preference"

    style: str = _chat_style()
    overflow: str = _overflow()


SPECS: dict[str, type[TextDataSpec]] = {
    "text": PlainTextSpec,
    "dictionary": DictionarySpec,
    "mcq": McqSpec,
    "chat": ChatSpec,
    "instruction": InstructionSpec,
    "image-chat": ImageChatSpec,
    "preference": PreferenceSpec,
}
"""Type → the class that reads its table."""
