"""The keys of the adapter types ``full`` and ``rows``."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, one_of, option


@frozen(kw_only=True)
class FullSpec(Spec):
    """full: W' = W + D, every number of D trained, for all weights of the chosen modules."""

    targets: tuple[str, ...] = option(
        ("all-linear",),
        help="modules or weights, with all that is inside them: globs, names or their last parts,"
        " 're:' regular expressions, 'all-linear'",
    )
    exclude: tuple[str, ...] = option(
        (), help="modules to skip even if targets match them; same patterns"
    )
    tied: str = option(
        "refuse",
        one_of("refuse", "untie"),
        help="what to do about a weight that is tied to one that is not among the targets",
    )


@frozen(kw_only=True)
class RowsSpec(Spec):
    """rows: W' = W + D with D zero outside the chosen rows; what is chosen adds up."""

    new: bool = option(False, help="the tokens that base.new_tokens* added")
    tokens: tuple[str, ...] = option((), help="tokens by their text")
    tokens_file: str = option("", help="a file of tokens, one a line")
    scripts: tuple[str, ...] = option(
        (),
        help="tokens whose letters are all of one script, by its Unicode name:"
        " hangul, latin, cjk, hiragana, cyrillic …",
    )
    ids: tuple[int, ...] = option((), help="tokens by their ids")
    ids_file: str = option("", help="a file of token ids, separated by white space")
    targets: tuple[str, ...] = option(
        (),
        help="modules that hold the table; empty: input embedding and output head of the model",
    )
    exclude: tuple[str, ...] = option(
        (), help="modules to skip even if targets match them; same patterns"
    )
    tied: str = option(
        "refuse",
        one_of("refuse", "untie"),
        help="what to do about a table that is tied to a module that is not among the targets",
    )
