"""Configuration of the three kinds of data."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, at_least, between, one_of, option

Source = str | tuple[str, ...]
"""A file, ``package:PACKAGE/PATH``, ``hub:OWNER/NAME?config=…&split=…``, or several of them."""

DIRECTIONS = ("en-ko", "ko-en", "ko-definition", "definition-ko")
LAYOUTS = ("mgk", "kormedmcqa", "kcd", "mmlu")


@frozen(kw_only=True)
class TextDataSpec(Spec):
    """What every kind of text data shares: sources, columns, splits, length, the base's probes."""

    train: Source = option(
        (), help="files, package:PACKAGE/PATH, or hub:OWNER/NAME?config=NAME&split=NAME"
    )
    dev: Source = option((), help="for choosing the best step; where empty, dev_share of train")
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
        "mgk", one_of(*LAYOUTS), help="names of the columns in a known kind of file"
    )
    skip_bad_rows: bool = option(
        False, help="count rows that cannot be read and go on, instead of stopping"
    )
    normalise: str = option(
        "NFC", one_of("NFC", "none"), help="Unicode form into which every text is brought"
    )
    limit: int | None = option(None, at_least(1), help="train on the first N rows only")
    max_length: int = option(
        512, at_least(8), help="most tokens of one example, the prompt included"
    )
    seed: int = option(0, at_least(0), help="of what is drawn: held-out shares, distractors")
    probe: str = option("", help="name of the probe; default: the data's type")
    cache: bool = option(
        True, help="keep tokenised data on disk ($MGK_CACHE, or the user's cache directory)"
    )
    base_probes: dict[str, str] = option(
        {}, help="probe name = source of texts that no phase trains on"
    )
    base_questions: dict[str, str] = option(
        {}, help="probe name = source of questions that no phase trains on"
    )
    base_layout: str = option("mgk", one_of(*LAYOUTS), help="layout of base_questions")
    calibration: Source = option((), help="texts that stand for what the base knew")
    calibration_rows: int = option(48, at_least(1), help="how many of them are used, spread evenly")
    calibration_tokens: int = option(
        64, at_least(8), help="most tokens of one calibration text; longer ones are cut"
    )

    @property
    def probe_name(self) -> str:
        """The probe's name; give it where a pipeline has two phases of one type."""
        return self.probe or self.type


@frozen(kw_only=True)
class PlainTextSpec(TextDataSpec):
    """Plain text, packed into rows of a fixed number of tokens; everything is learnt."""

    length: int = option(128, at_least(8), help="tokens of a packed row")
    overflow: str = option(
        "split", one_of("split", "error", "drop"), help="texts longer than max_length"
    )
    txt_unit: str = option(
        "paragraph", one_of("paragraph", "line", "file"), help="what one text of a .txt file is"
    )


@frozen(kw_only=True)
class PromptedSpec(TextDataSpec):
    """What dictionary and questions share: a prompt, of which only the answer is learnt."""

    style: str = option(
        "auto",
        one_of("auto", "chat", "plain"),
        help="auto: chat turns where the tokenizer has them",
    )
    overflow: str = option("error", one_of("error", "drop"), help="examples longer than max_length")
    generate: int = option(
        40, at_least(0), help="test items whose answer is also generated, in the first and last row"
    )
    new_tokens: int = option(24, at_least(1), help="most tokens of a generated answer")


@frozen(kw_only=True)
class DictionarySpec(PromptedSpec):
    """Dictionary entries: term, foreign term, definition; each direction is an example."""

    directions: tuple[str, ...] = option(
        ("en-ko",), help="what is learnt from what: " + ", ".join(DIRECTIONS)
    )
    probe_direction: str = option("en-ko", one_of(*DIRECTIONS), help="what the probe asks")
    distractors: int = option(
        4, at_least(1), help="wrong options of the probe, from the same specialty"
    )

    def __attrs_post_init__(self) -> None:
        if not self.directions or not set(self.directions) <= set(DIRECTIONS):
            raise ValueError(
                f"directions: expected some of {', '.join(DIRECTIONS)}, got {list(self.directions)}"
            )


@frozen(kw_only=True)
class McqSpec(PromptedSpec):
    """Multiple-choice questions; the answer is learnt as its content, as a letter, or after a reasoning."""

    target: str = option(
        "content", one_of("content", "letter", "reasoning"), help="what is learnt and scored"
    )
    show_options: bool = option(True, help="list the options in the prompt, as an examination does")
    answers: str = option(
        "auto",
        one_of("auto", "letter", "0", "1"),
        help="how the file counts: letters, from 0, from 1",
    )
    contrast: float = option(
        0.0,
        at_least(0),
        help="weight of telling the right option from the wrong ones, beside saying it; 0: off",
    )

    def __attrs_post_init__(self) -> None:
        if self.contrast and self.target == "reasoning":
            raise ValueError(
                "contrast: needs options that are scored as they are learnt; target 'reasoning' has none"
            )
        if self.target != "content" and not self.show_options:
            raise ValueError(
                f"show_options: target {self.target!r} needs the options in the prompt"
            )
