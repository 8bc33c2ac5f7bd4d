"""Uploads of surveys to data sets of the Hub."""

from __future__ import annotations

from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from sinkgate.errors import SinkgateError
from sinkgate.models.load_errors import first_sentence
from sinkgate.studies.results import Results

UPLOADED = ["survey.json", "report.html", "study.json", "*.parquet"]
FAILURES = (HTTPError, OSError, ValueError)  # of the client, the connection and the Hub


def check_target(name: str, connect: bool = True) -> None:
    """Raise, before hours of measuring, if a survey could not be uploaded afterwards.

    Args:
        name: owner and data set, such as "you/sinks".
        connect: also look up the token's owner on the Hub.

    Raises:
        SinkgateError: the name is malformed, the Hub is switched off or cannot be reached, or the token is missing, may only read, or
            belongs to another owner.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SinkgateError(f"the data set is {name!r}: {first_sentence(error)}") from error
    if "/" not in name:
        raise SinkgateError(f"the data set is {name!r}; expected its owner too, such as you/{name}")
    if constants.HF_HUB_OFFLINE:
        raise SinkgateError(
            f"HF_HUB_OFFLINE is set, so nothing can be uploaded to {name}; unset it, or leave --push out"
        )
    if get_token() is None:
        raise SinkgateError(f"there is no token of the Hub to upload to {name}; run `hf auth login`, or set HF_TOKEN")
    if not connect:
        return
    try:
        account: dict[str, Any] = HfApi().whoami()
    except FAILURES as error:
        raise SinkgateError(f"the survey could not be uploaded to {name} later: {_reason(error)}") from error
    owners = [account["name"], *(each["name"] for each in account.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise SinkgateError(f"the token of the Hub belongs to {', '.join(owners)}, and the data set is {name!r}")
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SinkgateError(
            f"the token of the Hub may only read, and {name} has to be written; create one with write access"
        )


def push(results: Results, name: str) -> str:
    """Upload card, page and tables of a survey to a data set of the Hub, created if missing, and return its address.

    Raises:
        SinkgateError: the Hub cannot be reached, or refuses.
    """
    api, folder = HfApi(), str(results.about["model"]["name"]).replace("/", "--")
    try:
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=results.folder,
            path_in_repo=folder,
            allow_patterns=UPLOADED,
            ignore_patterns=["parts/*"],  # the tables' pieces
            commit_message=f"Survey of {folder}",
        )
    except FAILURES as error:
        raise SinkgateError(
            f"the survey cannot be uploaded to {name}: {_reason(error)}; it stays in {results.folder}, and the same command uploads it "
            "without measuring again"
        ) from error
    return f"{api.endpoint}/datasets/{name}/tree/main/{folder}"


def _reason(error: BaseException) -> str:
    """Return the Hub's message, else the first sentence of the error."""
    return getattr(error, "server_message", None) or first_sentence(error)
