"""The credential vault of the newest official SDK against paddock."""

import os

import check
from opensandbox import SandboxSync
from opensandbox.config import ConnectionConfigSync
from opensandbox.exceptions import SandboxException

HOST = os.environ["HOST"]
sandbox = SandboxSync.connect(os.environ["SANDBOX"], connection_config=ConnectionConfigSync())
try:
    vault = sandbox.credential_vault
    state = vault.create(
        credentials=[{"name": "token", "source": {"type": "inline", "value": "from-the-sdk-0123"}}],
        bindings=[{"name": "api", "match": {"hosts": [HOST]}, "auth": {"type": "bearer", "credential": "token"}}],
    )
    check.equal(state.revision, 1, "revision")
    check.equal([c.name for c in state.credentials], ["token"], "credentials")
    check.equal(state.bindings[0].match.hosts, [HOST], "hosts")
    state = vault.patch(
        expected_revision=1,
        bindings={"replace": [{"name": "api", "match": {"hosts": [HOST]}, "auth": {"type": "basic", "credential": "token"}}]},
    )
    check.equal(state.revision, 2, "revision after a patch")
    check.equal(vault.get().bindings[0].auth.type, "basic", "type")
    check.equal([c.source_type for c in vault.list_credentials()], ["inline"], "source type")
    check.equal(vault.get_credential("token").revision, 1, "revision of the credential")
    check.equal([b.name for b in vault.list_bindings()], ["api"], "bindings")
    check.equal(vault.get_binding("api").revision, 2, "revision of the binding")
    try:
        vault.patch(expected_revision=1)
        check.true(False, "a patch of an old revision was taken")
    except SandboxException:
        pass
    echoed = sandbox.commands.run(f"curl -sS https://{HOST}/").text
    check.true("from-the-sdk-0123" not in echoed, "the value came back")
    vault.delete()
    try:
        vault.get()
        check.true(False, "the vault is still there")
    except SandboxException:
        pass
finally:
    sandbox.close()
