"""How long a request to the Hub may take, why it failed, whether waiting helps, and what a person can do about it.

No message holds a token. Knows nothing about what was asked for.
"""

from __future__ import annotations

import httpx
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from bnft.errors import BAD_INPUT, ENVIRONMENT, UserError, first_line

SILENCE = 120.0  # seconds in which not a byte comes or goes
LOGIN = "Make a token with write access at {url}/settings/tokens, then: hf auth login   (or set HF_TOKEN)"


def limit_waiting() -> None:
    """Ends requests to a Hub that has fallen silent; the library by itself would wait for ever."""
    hooks, limit = get_session().event_hooks, httpx.Timeout(SILENCE, pool=None)
    set_client_factory(lambda: httpx.Client(event_hooks=hooks, follow_redirects=True, timeout=limit))


def response_of(error: BaseException | None) -> httpx.Response | None:
    """The Hub's answer behind an error; uploads in threads wrap it."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response
        error = error.__cause__ or error.__context__
    return None


def is_passing(error: BaseException, answer: httpx.Response | None) -> bool:
    if answer is not None:
        return answer.status_code == 429 or answer.status_code >= 500
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OfflineModeIsEnabled):
            return False
        if isinstance(chain, httpx.TransportError):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def reason_of(error: BaseException, answer: httpx.Response | None) -> str:
    if answer is not None:
        said = answer.headers.get("X-Error-Message") or ""
        return f"the Hub answered {answer.status_code}" + (f" ({said})" if said else "")
    return first_line(error)


def explain(what: str, error: BaseException, answer: httpx.Response | None, endpoint: str) -> UserError:
    """What a person can do about a failed request."""
    again = "Run the same command again: what is up already is not sent twice."
    if isinstance(error, LocalTokenNotFoundError):
        return UserError("publishing needs a Hugging Face token", LOGIN.format(url=endpoint))
    status = answer.status_code if answer is not None else 0
    reason = reason_of(error, answer)
    if status == 400 and answer is not None:
        return UserError(f"{what}: the Hub refused it: {answer.text[:500]}", "Mend it and run the same command again.")
    if status in (401, 403):
        return UserError(f"{what}: {reason}", LOGIN.format(url=endpoint), exit_code=BAD_INPUT)
    if status == 402:
        hint = "Leave it out, for example with --only adapter,merged,card, or subscribe at the Hub."
        return UserError(f"{what}: the Hub wants a paying account for this ({reason})", hint)
    if status == 404:
        return UserError(f"{what}: it is not on {endpoint}, or this token may not see it", "Check the name.")
    if status:
        return UserError(f"{what}: {reason}", again, exit_code=ENVIRONMENT)
    if isinstance(error, httpx.HTTPError | OSError | RuntimeError):
        return UserError(f"{what}: {endpoint} cannot be reached: {reason}", again, exit_code=ENVIRONMENT)
    return UserError(f"{what}: {reason}", "", exit_code=ENVIRONMENT)
