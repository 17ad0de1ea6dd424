# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the AWS modules share: clients that try again, one shape of error, and deadlines."""

from __future__ import annotations

import contextlib
import time
import typing as t

# AnsibleAWSModule says what is missing before any of this runs.
with contextlib.suppress(ImportError):
    from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, silent

# On top of what botocore and AWSRetry know as "try again".
BUSY_CODES = ["APICallRateForCustomerExceeded", "SlowDown", "ThrottlingException"]
# As long as a packet that is lost on the way is sent once more.
_IMPATIENT = {"connect_timeout": 4, "retries": {"total_max_attempts": 2}}
RETRY = AWSRetry.jittered_backoff(retries=6, delay=1, max_delay=20, catch_extra_error_codes=BUSY_CODES)


def retrying_client(module: t.Any, service: str) -> t.Any:
    """Give back a client of I(service) whose calls try again when they are made with C(aws_retry=True)."""
    return module.client(service, retry_decorator=RETRY)


def impatient_client(module: t.Any, service: str) -> t.Any:
    """The same, of a service that can be done without: where no route leads to it, that is known within seconds."""
    return module.client(service, retry_decorator=RETRY, config=_IMPATIENT)


def error_code(error: ClientError) -> str:
    """The error code on the wire; for S3's HEAD requests, which have no body, it is the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def aws_errors(doing: str) -> t.Iterator[None]:
    """Turn what boto3 raises into KeyferryError: I(doing) completes "Could not ..."."""
    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        request = error.response.get("ResponseMetadata", {}).get("RequestId")
        raise KeyferryError(
            f"Could not {doing}: {details.get('Message') or error} ({error_code(error)})",
            error_code=error_code(error),
            request_id=request,
        ) from error
    except EndpointConnectionError as error:
        raise KeyferryError(
            f"Could not {doing}: {error}. Check endpoint_url, region, and the route from this host to it."
        ) from error
    except BotoCoreError as error:
        raise KeyferryError(f"Could not {doing}: {error}") from error


@contextlib.contextmanager
def done_already(code: str) -> t.Iterator[None]:
    """Take an error of this code for success: a request whose answer was lost has done it, or somebody else."""
    try:
        yield
    except KeyferryError as error:
        if error.result.get("error_code") != code:
            raise


class Deadline:
    """The time that a task may take, and the pauses between two looks at its state: short at first, then longer."""

    FIRST_PAUSE = 0.25
    LONGEST_PAUSE = 5.0

    def __init__(self, seconds: float, progress: Progress = silent) -> None:
        """I(progress) is told how many seconds have passed, before each pause."""
        self.seconds = seconds
        self._progress = progress
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @property
    def passed(self) -> bool:
        return self.elapsed >= self.seconds

    def pause(self) -> float:
        """Seconds until the next look, never beyond the deadline by more than a blink."""
        wanted = min(self.LONGEST_PAUSE, self.FIRST_PAUSE + self.elapsed / 30)
        return max(0.05, min(wanted, self.seconds - self.elapsed))

    def sleep(self) -> None:
        self._progress(int(self.elapsed), 0)
        time.sleep(self.pause())
