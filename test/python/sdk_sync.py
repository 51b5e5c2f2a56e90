"""The synchronous client of the newest official SDK against paddock."""

from datetime import timedelta

import check
from opensandbox import SandboxManagerSync, SandboxSync
from opensandbox.config import ConnectionConfigSync
from opensandbox.models.execd import RunCommandOpts
from opensandbox.models.filesystem import WriteEntry
from opensandbox.models.sandboxes import SandboxFilter

config = ConnectionConfigSync()
sandbox = SandboxSync.create(check.IMAGE, metadata=check.METADATA, timeout=timedelta(minutes=5), connection_config=config)
try:
    check.equal(sandbox.commands.run("echo hello").text, "hello", "stdout")
    check.equal(sandbox.commands.run("exit 3").exit_code, 3, "exit code")
    started = sandbox.commands.run("sleep 60", opts=RunCommandOpts(background=True))
    check.true(sandbox.commands.get_command_status(started.id).running, "background")
    sandbox.commands.interrupt(started.id)
    session = sandbox.commands.create_session()
    sandbox.commands.run_in_session(session, "A=1")
    check.equal(sandbox.commands.run_in_session(session, "echo $A").text, "1", "a variable that is not exported")
    sandbox.commands.delete_session(session)
    sandbox.files.write_files([WriteEntry(path="/tmp/x", data="content", mode=644)])
    check.equal(sandbox.files.read_file("/tmp/x"), "content", "file")
    sandbox.pause()
    check.equal(sandbox.get_info().status.state, "Paused", "state")
    again = SandboxSync.resume(sandbox.id, connection_config=config)
    check.equal(again.files.read_file("/tmp/x"), "content", "file after resume")
    manager = SandboxManagerSync.create(connection_config=config)
    page = manager.list_sandbox_infos(SandboxFilter(metadata=check.METADATA))
    check.equal([i.id for i in page.sandbox_infos], [sandbox.id], "list")
    manager.close()
finally:
    sandbox.kill()
    sandbox.close()
