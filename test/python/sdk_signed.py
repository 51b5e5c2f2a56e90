"""A signed endpoint from the newest official SDK: whoever has it needs no key."""

import time
import urllib.request
from datetime import timedelta

import check
from opensandbox import SandboxSync
from opensandbox.config import ConnectionConfigSync

config = ConnectionConfigSync()
sandbox = SandboxSync.create(check.IMAGE, metadata=check.METADATA, timeout=timedelta(minutes=5), connection_config=config)
try:
    endpoint = sandbox.get_signed_endpoint(44772, int(time.time()) + 60)
    check.true("OpenSandbox-Secure-Access" not in (endpoint.headers or {}), "no token")
    request = urllib.request.Request("http://" + endpoint.endpoint + "/ping", headers=endpoint.headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        check.equal(answer.status, 200, "ping")
finally:
    sandbox.kill()
    sandbox.close()
