"""Checks that report to the Go test that runs the script, one JSON object a line."""

import asyncio
import inspect
import json
import logging
import os
import sys
import time
import traceback

IMAGE = os.environ["TEST_IMAGE"]
DOMAIN = os.environ["OPEN_SANDBOX_DOMAIN"]
API_KEY = os.environ["OPEN_SANDBOX_API_KEY"]
METADATA = {"suite": "clients"}

# The SDKs log every error that they raise, with its traceback.
logging.disable(logging.CRITICAL)

# The report goes to the standard output; nothing else may.
_out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


class Skip(Exception):
    """Says that the server does not have what the check is about."""


class Failure(AssertionError):
    """A check that did not hold."""


def equal(got, want, what):
    if got != want:
        raise Failure(f"{what}: got {got!r}, want {want!r}")


def true(ok, what):
    if not ok:
        raise Failure(what)


def contains(text, part, what):
    if part not in text:
        raise Failure(f"{what}: {part!r} is not in {text!r}")


def raises(kind, what):
    """A context that fails unless an exception of the kind comes; it is kept as .error."""
    return _Raises(kind, what)


class _Raises:
    def __init__(self, kind, what):
        self.kind, self.what, self.error = kind, what, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, tb):
        if error is None:
            raise Failure(f"{self.what}: no error came")
        if not isinstance(error, self.kind):
            return False
        self.error = error
        return True


def text(messages):
    """The text of output messages, one a line."""
    return "\n".join(m.text.rstrip("\n") for m in messages)


def report(check, error=None, skip=None, seconds=0):
    line = {"check": check, "ok": error is None, "seconds": round(seconds, 3)}
    if skip:
        line["skip"] = skip
    if error is not None:
        line["detail"] = error
    print(json.dumps(line), file=_out, flush=True)


class Suite:
    """Runs checks one after another; one that fails does not stop the next."""

    def __init__(self):
        self.checks = []

    def check(self, name):
        def add(function):
            self.checks.append((name, function))
            return function

        return add

    async def run(self, *args, limit=45):
        for name, function in self.checks:
            began = time.monotonic()
            try:
                got = function(*args)
                if inspect.isawaitable(got):
                    await asyncio.wait_for(got, limit)
            except Skip as e:
                report(name, skip=str(e))
            except Failure as e:
                report(name, error=str(e))
            except Exception as e:
                report(name, error="".join(traceback.format_exception(e))[-4000:])
            else:
                report(name, seconds=time.monotonic() - began)

    def run_sync(self, *args):
        asyncio.run(self.run(*args))


def fail(message):
    """Ends the script because nothing more can be checked."""
    print(message, file=sys.stderr)
    sys.exit(1)
