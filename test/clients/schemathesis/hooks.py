"""What a generator of requests can't know: names that exist, and what not to wait for.

The documents say what a well-formed request is. Whether it can be carried out
depends on more, such as the images of the machine. Requests that are meant to be
good are changed here so that they can be; those that are meant to be bad go out
as they are.
"""

import os

import schemathesis
from schemathesis import GenerationMode

IMAGE = os.environ["TEST_IMAGE"]

# Statuses of failures that are not the server's, where they are documented: a
# part that is not built, a port that nobody listens on, a registry out of reach.
NOT_ITS_FAULT = {501, 502, 503}


@schemathesis.check
def no_server_error(ctx, response, case):
    """In place of the built-in check, which knows no exceptions."""
    if response.status_code >= 500 and response.status_code not in NOT_ITS_FAULT:
        raise AssertionError(f"the server failed: {response.status_code} {response.text[:500]}")


def meant_to_be_good(case):
    meta = getattr(case, "meta", None)
    return meta is not None and meta.generation.mode == GenerationMode.POSITIVE


@schemathesis.hook
def before_call(ctx, case, kwargs):
    endless(case)
    if meant_to_be_good(case):
        change = GOOD.get((case.method.upper(), case.operation.path))
        if change:
            change(case)


def endless(case):
    """Streams that go on for as long as the sandbox lives are for other tests."""
    if case.query:
        case.query.pop("follow", None)
    if case.headers:
        for name in [n for n in case.headers if n.lower() == "prefer"]:
            case.headers.pop(name)


def create(case):
    if not isinstance(case.body, dict):
        return
    case.body["image"] = {"uri": IMAGE}
    case.body["entrypoint"] = ["sleep", "1000000"]
    case.body["timeout"] = 120
    case.body["metadata"] = {"suite": "clients"}
    case.body["resourceLimits"] = {"memory": "64Mi", "pids": "32"}
    # Directories of the host, amounts, schedules and variables have rules that
    # no pattern can say.
    for name in ("volumes", "resourceRequests", "platform", "lifecycle", "extensions", "env", "snapshotId", "templateId"):
        case.body.pop(name, None)
    if case.headers:
        for name in [n for n in case.headers if n.lower() == "idempotency-key"]:
            case.headers.pop(name)


def pull(case):
    if isinstance(case.body, dict):
        case.body.clear()
        case.body["image"] = {"uri": "127.0.0.1:1/none:1"}


def listing(case):
    if case.query:
        case.query.pop("metadata", None)
        if isinstance(case.query.get("state"), list):
            # A request line has a limit, too.
            case.query["state"] = case.query["state"][:3]


def endpoint(case):
    if case.query:
        case.query.pop("expires", None)


def renew(case):
    if isinstance(case.body, dict):
        case.body["expiresAt"] = "2100-01-01T00:00:00Z"


def named(key):
    def change(case):
        if case.query and key in case.query:
            case.query[key] = "none:1"

    return change


GOOD = {
    ("POST", "/sandboxes"): create,
    ("GET", "/sandboxes"): listing,
    ("GET", "/sandboxes/{sandboxId}/endpoints/{port}"): endpoint,
    ("POST", "/sandboxes/{sandboxId}/renew-expiration"): renew,
    ("POST", "/images"): pull,
    ("DELETE", "/images"): named("ref"),
    ("GET", "/images/export"): named("ref"),
}
