"""Whether a run can use the Prefect API that PREFECT_API_URL or a profile names, asked before the run, and what to say
of one that ends during the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from bitlm.errors import ServiceError
from bitlm.storage import redact
from bitlm.text import first_line

# Prefect's client connects four times.
CONNECT_SECONDS = 5
ANSWER_SECONDS = 20


def check_api(url: str) -> None:
    """Raises ServiceError if nothing answers at the URL, refuses the client, or is no Prefect of this major version."""
    named = f"PREFECT_API_URL = {redact(url)}"
    unset = "correct it, or unset it to run with a server of the run's own"
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": timeout}, sync_client=True) as client,
        ):
            client.read_flows(limit=1)
            client.raise_for_api_version_mismatch()
    except httpx.TransportError as error:
        raise ServiceError(
            f"{named} gives no answer ({redact(first_line(error))}): start that server, or {unset}"
        ) from error
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            remedy = "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
            raise ServiceError(f"{named} refuses this client (status {code}): {remedy}") from error
        raise ServiceError(f"{named} is not the API of a Prefect server (status {code}): {unset}") from error
    # What the client says of a malformed URL or proxy, of an answer that is not Prefect's, and of another version.
    except (ValueError, TypeError, ImportError, RuntimeError, httpx.InvalidURL) as error:
        raise ServiceError(f"{named} cannot be used ({redact(first_line(error))}): {unset}") from error


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Raises ServiceError in place of what Prefect's client raises when the API at the URL no longer answers."""
    try:
        yield
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        if not str(error.request.url).startswith(url):
            raise
        said = redact(first_line(error))
        raise ServiceError(
            f"the Prefect server at {redact(url)} is gone ({said}): run again, what is complete is kept"
        ) from error
