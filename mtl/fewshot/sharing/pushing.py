"""Put a learner, a task or a run on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from mtl.fewshot.hub_files import TASK, HubPlace, parse_hub_name
from mtl.fewshot.sharing.gathering import Shareable, gather
from mtl.fewshot.sharing.model_card import card_of

CARD = "README.md"


def push_to_hub(
    source: Shareable,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    license: str | None = None,
    message: str | None = None,
) -> str:
    """Share a learner, an adapted task or the result of a run on the Hugging Face hub, in one commit.

    >>> mtl.push_to_hub("runs/trees", "ada/trees", license="apache-2.0")  # doctest: +SKIP
    'ada/trees@5c0ffee0c6e2a9e3cfb7a6fd0f9f2b0e0a7f1d23'
    >>> mtl.from_pretrained("ada/trees@5c0ffee0c6e2a9e3cfb7a6fd0f9f2b0e0a7f1d23")  # doctest: +SKIP

    What goes up: the two files of the generator, or the one of a task, both without paths of this machine; of a run
    also its tables, ``accuracy.png`` and its settings; and a card, see :func:`model_card`. The network's weights do
    not, and no example of the data.

    Args:
        source: folder of a run of ``mtl train``, a learner or its folder, an adapted task or its file.
        repo: ``"user/name"``, made if needed; or ``"user/name/returns.mtl"`` to put a task beside others, where the
            card that is there stays.
        private: who may read a repository that is made; by default as the account says.
        token: of an account that may write there; by default the one of ``hf auth login``.
        license: of what is shared, for the card.
        message: of the commit.

    Returns:
        ``"user/name@<commit>"``, which loads this very state for ever.

    Raises:
        FileNotFoundError: there is nothing to share.
        ValueError: no such name can be given to a repository.
        OSError: the hub refused, or could not be reached; says why.
    """
    place = _target(repo)
    shared = gather(source)
    if place.file and shared.kind != "task":
        raise ValueError(f"{repo!r} names the file of a task, and this is a generator; expected 'user/name'")
    name = place.file or TASK
    files = {place.file or k: v for k, v in shared.files.items()} if shared.kind == "task" else dict(shared.files)
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with _explained(place.repo):
        api.create_repo(place.repo, private=private, exist_ok=True)
        if place.file is None or not api.file_exists(place.repo, CARD):
            files[CARD] = card_of(shared, place.repo, license, name).encode()
        commit = api.create_commit(
            place.repo,
            [CommitOperationAdd(path, contents) for path, contents in files.items()],
            commit_message=message or f"A {shared.kind} of mtl {shared.versions['mtl']}",
        )
    return f"{place.repo}{f'/{place.file}' if place.file else ''}@{commit.oid}"


def _target(repo: str) -> HubPlace:
    """Whatever folders there are here."""
    place = parse_hub_name(repo)
    if place is None or place.revision:
        raise ValueError(
            f"{repo!r} cannot be the name of a repository; expected 'user/name' or 'user/name/returns.mtl'"
        )
    return place


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise OSError(f"{repo} was not pushed: no token; pass token= or run 'hf auth login'") from error
    except OfflineModeIsEnabled as error:
        raise OSError(f"{repo} was not pushed: HF_HUB_OFFLINE is set; unset it") from error
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be the name of a repository: {' '.join(str(error).split())}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; pass a token= that may write there, or run 'hf auth login'" if status in (401, 403) else ""
        raise OSError(f"{repo} was not pushed: {constants.ENDPOINT} answers {status}{hint}") from error
