"""What a generator of requests can't know: names that exist, and what not to wait for.

The documents say what a well-formed request is. Whether it can be carried out
depends on more, such as the images of the machine. Requests that are meant to be
good are changed here so that they can be; those that are meant to be bad go out
as they are.
"""

import itertools
import os

import schemathesis
from schemathesis import GenerationMode

IMAGE = os.environ["TEST_IMAGE"]

NUMBERS = itertools.count()

# Statuses of failures that are not the server's, where they are documented: a
# part that is not built, a port that nobody listens on, a registry out of reach.
NOT_ITS_FAULT = {501, 502, 503}


# With 500, execd's protocol says what the sandbox's system refuses: a name that is
# a directory, a language that the image lacks.
REFUSALS = {"RUNTIME_ERROR", "NOT_SUPPORTED"}


@schemathesis.check
def no_server_error(ctx, response, case):
    """In place of the built-in check, which knows no exceptions."""
    if response.status_code < 500 or response.status_code in NOT_ITS_FAULT:
        return
    try:
        refused = response.status_code == 500 and response.json()["code"] in REFUSALS
    except ValueError:
        refused = False
    if not refused:
        raise AssertionError(f"the server failed: {response.status_code} {response.text[:500]}")


@schemathesis.serializer("application/x-tar")
def tar(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()


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
    for name in ("volumes", "resourceRequests", "platform", "lifecycle", "extensions", "env", "snapshotId", "templateId", "credentialProxy"):
        case.body.pop(name, None)
    reachable(case.body.get("networkPolicy"))
    if case.headers:
        for name in [n for n in case.headers if n.lower() == "idempotency-key"]:
            case.headers.pop(name)


def reachable(policy):
    """Rules for names that can be names: what those are no pattern can say."""
    if isinstance(policy, dict):
        rules(policy.get("egress"))


def rules(egress):
    for i, rule in enumerate(egress or []):
        rule["target"] = f"n{i}.example"
        rule.pop("http", None)


def policy(case):
    reachable(case.body)
    any_version(case)


def patch_policy(case):
    if isinstance(case.body, list):
        rules(case.body)
    any_version(case)


def vault(case):
    """Names that can stand in a URL and that nothing has."""
    if isinstance(case.body, dict):
        for kind in ("credentials", "bindings"):
            part = case.body.get(kind)
            if isinstance(part, dict):
                # What there is to be replaced or deleted is not known.
                part.pop("replace", None)
                part.pop("delete", None)
                part = part.get("add")
            if kind == "bindings" and part:
                # They stand on rules and credentials that may not be there.
                part.clear()
            for entry in part or []:
                entry["name"] = f"n{next(NUMBERS)}"


def any_version(case):
    if case.headers:
        for name in [n for n in case.headers if n.lower() == "if-match"]:
            case.headers[name] = "*"


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


def command(case):
    body(case, command="echo hello", cwd="/tmp")


def code(case):
    body(case, code="1", context={"language": "bash"})


def context(case):
    body(case, language="bash", cwd="/tmp")


def session(case):
    body(case, cwd="/tmp")


def run(case):
    body(case, command="echo hello", cwd="/tmp")


def terminal(case):
    body(case, cwd="/tmp", command="true")


def body(case, **members):
    """A body of these alone; how they may be combined is not in the schema."""
    if isinstance(case.body, dict):
        case.body.clear()
        case.body.update(members)


def path(case):
    if case.query and "path" in case.query:
        case.query["path"] = ["/tmp/good"] if isinstance(case.query["path"], list) else "/tmp/good"
        case.query.pop("pattern", None)
    if case.headers:
        for name in [n for n in case.headers if n.lower() == "range"]:
            case.headers.pop(name)


def download(case):
    path(case)
    if case.query and "path" in case.query:
        case.query["path"] = "/etc/passwd"


def contexts(case):
    if case.query and "language" in case.query:
        case.query["language"] = "bash"


def paths(case):
    if isinstance(case.body, dict):
        values = list(case.body.values())
        case.body.clear()
        if values and values[0] is not None:
            value = values[0]
            # Users and groups that exist, and modes of octal digits.
            if isinstance(value, dict) and "old" not in value:
                value = {"mode": 755}
            case.body["/tmp/good"] = value


def replacements(case):
    """In a file: what the others use is a directory at times."""
    paths(case)
    if isinstance(case.body, dict) and "/tmp/good" in case.body:
        case.body["/etc/profile"] = case.body.pop("/tmp/good")


def moves(case):
    if isinstance(case.body, list):
        case.body[:] = [{"src": "/tmp/good", "dest": "/tmp/better"} for _ in case.body[:1]]


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
    ("PUT", "/sandboxes/{sandboxId}/networkpolicy"): policy,
    ("POST", "/sandboxes/{sandboxId}/networkpolicy"): policy,
    ("PATCH", "/sandboxes/{sandboxId}/networkpolicy"): patch_policy,
    ("DELETE", "/sandboxes/{sandboxId}/networkpolicy"): any_version,
    ("POST", "/command"): command,
    ("POST", "/code"): code,
    ("POST", "/code/context"): context,
    ("GET", "/code/contexts"): contexts,
    ("DELETE", "/code/contexts"): contexts,
    ("POST", "/session"): session,
    ("POST", "/session/{id}/run"): run,
    ("POST", "/pty"): terminal,
    ("GET", "/files/info"): path,
    ("DELETE", "/files"): path,
    ("GET", "/files/search"): path,
    ("GET", "/files/download"): download,
    ("GET", "/directories/list"): path,
    ("DELETE", "/directories"): path,
    ("GET", "/directories/archive"): path,
    ("POST", "/directories/archive"): path,
    ("POST", "/files/permissions"): paths,
    ("POST", "/directories"): paths,
    ("POST", "/files/replace"): replacements,
    ("POST", "/files/mv"): moves,
    ("POST", "/policy"): policy,
    ("PUT", "/policy"): policy,
    ("PATCH", "/policy"): patch_policy,
    ("POST", "/credential-vault"): vault,
    ("PATCH", "/credential-vault"): vault,
    ("POST", "/images"): pull,
    ("DELETE", "/images"): named("ref"),
    ("GET", "/images/export"): named("ref"),
}
