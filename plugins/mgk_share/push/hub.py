"""Sends a parcel to the hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_share.push.parcel import Item


def require_library() -> None:
    """:raises EnvironmentFault: the extra ``hub`` is not installed."""
    if find_spec("huggingface_hub") is None:
        raise EnvironmentFault("push needs huggingface_hub: pip install 'mgk[hub]'")


def check_name(repository: str) -> None:
    """:raises InputError: it is not OWNER/NAME as the hub allows."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{repository}: not a name for the hub: {error}") from None
    if repository.count("/") != 1:
        raise InputError(f"{repository}: expected OWNER/NAME, such as me/my-model")


def token() -> str:
    """Return the token of this user.

    :raises EnvironmentFault: there is none
    """
    from huggingface_hub import get_token

    found: str | None = get_token()
    if not found:
        raise EnvironmentFault(
            "no token for the hub: run 'hf auth login' or set HF_TOKEN (a token that may write);"
            " --dry-run shows what would be sent without one"
        )
    return found


def address(repository: str) -> str:
    """Return the page of a repository; HF_ENDPOINT names another hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def send(items: Sequence[Item], repository: str, *, private: bool, message: str) -> str:
    """Make the repository where it does not exist, and send all files as one commit.

    :return: address of the commit
    :raises InputError: ``private`` was asked for, and the repository exists and is public
    :raises EnvironmentFault: the hub cannot be reached, or refuses
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    api = HfApi(token=token())
    disable_progress_bars()
    with _explained(repository):
        if api.repo_exists(repository):
            if private and not api.repo_info(repository).private:
                raise InputError(
                    f"{repository}: exists and is public, and --private was given; nothing was sent."
                    " Make it private on its settings page, or choose another name"
                )
        else:
            api.create_repo(repository, private=private)
        operations = [
            CommitOperationAdd(
                item.name,
                item.content if isinstance(item.content, bytes) else str(item.content),
            )
            for item in items
        ]
        made = api.create_commit(repository, operations, commit_message=message)
    return str(made.commit_url)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Name what the hub or the network refused, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    # The error of the HTTP library below, which is not the same one in every version.
    network: tuple[type[Exception], ...] = HfHubHTTPError.__bases__

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "; the token is not valid: run 'hf auth login' again",
            403: "; the token may not write there: make one that may, or choose another OWNER",
        }.get(status, "")
        reason = error.server_message or str(error).splitlines()[0]
        raise EnvironmentFault(
            f"{address(repository)}: the hub answered {status}: {reason}{advice}"
        ) from error
    except ValueError as error:
        raise EnvironmentFault(f"{address(repository)}: refused: {error}") from error
    except network as error:
        raise EnvironmentFault(
            f"{address(repository)}: cannot be reached ({type(error).__name__}: {error});"
            " check the network and HF_ENDPOINT"
        ) from error
