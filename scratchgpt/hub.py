"""Upload an exported model to the Hugging Face Hub, with the user's own login."""

import os
import re
from pathlib import Path

from scratchgpt.errors import UserError

TIMEOUT_S = 60.0  # for the hub to answer one request; huggingface_hub itself would wait for ever
_CONNECT_S = 10.0


def check_ready(repo_id: str) -> None:
    """Raise UserError where ``push`` to ``repo_id`` cannot succeed, as far as that is known without the network."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise UserError(f"--push_to_hub={repo_id!r} is not a repository's name: {str(e).split(': ')[0]}") from e
    if repo_id.count("/") != 1:
        raise UserError(f"--push_to_hub={repo_id!r} must name an owner and a repository, as USER/REPO does")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the upload: unset it, or leave out --push_to_hub"
        )
    _limit_waiting()  # an OAuth login that is about to expire is renewed by get_token
    try:
        token = get_token()
    except Exception as e:  # the exchange for a continuous-integration identity raises errors of many kinds
        raise UserError(f"the Hugging Face login cannot be had: {e}") from e
    if not token:
        raise UserError("no Hugging Face login for --push_to_hub: run `hf auth login`, or set HF_TOKEN")


def push(directory: Path, repo_id: str, private: bool) -> str:
    """Upload every file of ``directory`` to the model repository ``repo_id``, which is made if it does not exist.

    Args:
      directory: a Hugging Face model directory.
      repo_id: ``USER/REPO`` or ``ORGANISATION/REPO``.
      private: make a new repository private. A public one that exists already is refused, not changed.

    Returns:
      The repository's URL.

    Raises UserError: no login, offline, no network, no right to write there, a hub that fails or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    check_ready(repo_id)
    logging.set_verbosity_error()  # it would report each retry; we report the outcome
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the owner's settings say
        if private and not api.repo_info(repo_id).private:
            raise UserError(f"{url} exists and is public, so --private would not hold: make it private there first")
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload a model made with ScratchGPT")
    except UserError:
        raise
    except Exception as e:  # httpx, hf_xet and the operating system share no base class
        raise UserError(_reason(e, repo_id, api.endpoint)) from e
    return str(url)


def _limit_waiting() -> None:
    """Give every request of huggingface_hub a time limit and keep all else of its client, such as its hooks."""
    from huggingface_hub import get_session, set_client_factory

    client, hooks = type(get_session()), get_session().event_hooks  # httpx's, or httpx2's, as the version has it
    limits = (_CONNECT_S, TIMEOUT_S, TIMEOUT_S, _CONNECT_S)  # to connect, to read, to write, to get a connection
    set_client_factory(lambda: client(event_hooks=hooks, follow_redirects=True, timeout=limits))
    # hf_xet, which sends the weights, has its own client and would try again for minutes
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", f"{max(1, round(TIMEOUT_S))}s")


def _reason(error: BaseException, repo_id: str, endpoint: str) -> str:
    """One sentence for what ``error``, or the answer of the hub behind it, means to the user."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    in_words = re.search(r"HTTP status \w+ error \((\d{3}) ", text)  # hf_xet has no other way to tell
    if cause is not None:
        status = cause.response.status_code
    elif in_words:
        status = int(in_words[1])
    elif isinstance(error, KeyError | ValueError):  # something was read, and could not be used
        return f"{endpoint} does not answer as the Hugging Face Hub does ({text}): check HF_ENDPOINT"
    else:
        return f"cannot upload to {endpoint} ({text}): check the network and try again"
    said = " ".join((getattr(cause, "server_message", None) or "").split())[:300]
    what = f"{endpoint} answers {status}" + (f" ({said})" if said else "")
    if status == 401:
        return f"{what}: the login is not valid there, renew it with `hf auth login` or another HF_TOKEN"
    if status in (403, 404):
        return f"{what}: this login has no right to write to {repo_id}; take your own name, or a token that may write"
    if status == 429 or status >= 500:
        return f"{what}: try again later"
    return f"{what} and refuses the upload to {repo_id}"
