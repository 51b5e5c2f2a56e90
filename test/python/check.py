"""Checks for the scripts that drive the official SDK."""

import os

IMAGE = os.environ["TEST_IMAGE"]
METADATA = {"suite": "sdk"}


def equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")


def true(ok, what):
    if not ok:
        raise AssertionError(what)


def output(messages):
    """The text of output messages, one a line, as the SDK's users join them."""
    return "\n".join(m.text.rstrip("\n") for m in messages)
