"""What the hub's and transformers' errors mean to a user, and how to fix them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mgk_core.contract.errors import EnvironmentFault, InputError, MgkError

_LOGIN = "log in with a token that may read it (hf auth login, or HF_TOKEN)"


def explain(name: str, revision: str | None, error: BaseException) -> MgkError:
    """Return the typed error for a base that could not be loaded. The cause is the caller's to chain."""
    chain = list(_chain(error))
    said = " ".join(str(error).split())[:300] or type(error).__name__
    told = _of_the_hub(name, revision, chain)
    if told is not None:
        return told
    if any("safetensors" in str(e) for e in chain):
        return InputError(
            f"base.id: {name} has no safetensors weights ({said}); mgk reads no pickles: convert it first"
        )
    if any("trust_remote_code" in str(e) for e in chain):
        return InputError(
            f"base.id: {name} brings Python code of its own; read it, then set base.trust_remote_code = true"
        )
    kind = (
        EnvironmentFault
        if any(isinstance(e, ImportError) for e in chain)
        else InputError
    )
    return kind(
        f"base.id: {name}: cannot be loaded: {said}; expected what save_pretrained writes: config.json of a language model,"
        " safetensors weights and a tokenizer, whole"
    )


def _of_the_hub(
    name: str, revision: str | None, chain: list[BaseException]
) -> MgkError | None:
    """Return what a failed request means, None where no request failed."""
    from huggingface_hub import errors as hub

    def seen(*classes: type[BaseException]) -> bool:
        return any(isinstance(e, classes) for e in chain)

    if seen(hub.GatedRepoError):
        return EnvironmentFault(
            f"base.id: {name} is gated: accept its terms on https://huggingface.co/{name} and {_LOGIN}"
        )
    if seen(hub.RevisionNotFoundError):
        return InputError(
            f"base.revision: {name} has no revision {revision!r}; expected a commit, tag or branch"
        )
    if seen(hub.RepositoryNotFoundError):
        return InputError(
            f"base.id: {name}: no such model on the hub, or a private one; check the spelling, or {_LOGIN}"
        )
    if seen(
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        ConnectionError,
        TimeoutError,
    ):
        return EnvironmentFault(
            f"base.id: {name} is not in the local cache and the hub cannot be reached;"
            f" connect once, or give the path of a local directory ({Path.cwd()} contains none of this name)"
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, each once."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
