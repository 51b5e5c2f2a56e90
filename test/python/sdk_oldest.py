"""The oldest release of the official SDK against paddock.

It does not know the headers that come with an endpoint; the endpoints that it
gets work without.
"""

import asyncio
import os
from datetime import timedelta

import check
from opensandbox import Sandbox, SandboxManager
from opensandbox.config import ConnectionConfig
from opensandbox.models.execd import RunCommandOpts
from opensandbox.models.filesystem import MoveEntry, SearchEntry, WriteEntry
from opensandbox.models.sandboxes import SandboxFilter


async def main():
    config = ConnectionConfig(api_key=os.environ["OPEN_SANDBOX_API_KEY"])
    sandbox = await Sandbox.create(check.IMAGE, metadata=check.METADATA, connection_config=config)
    try:
        result = await sandbox.commands.run("echo one; echo two >&2")
        check.equal(check.output(result.logs.stdout), "one", "stdout")
        check.equal(check.output(result.logs.stderr), "two", "stderr")
        result = await sandbox.commands.run("exit 4")
        check.equal(result.error.value, "4", "a failing command")
        await sandbox.commands.run("sleep 1", opts=RunCommandOpts(background=True))
        await sandbox.files.write_files([WriteEntry(path="/tmp/a/b.txt", data="text", mode=644)])
        check.equal(await sandbox.files.read_file("/tmp/a/b.txt"), "text", "file")
        found = await sandbox.files.search(SearchEntry(path="/tmp/a", pattern="*.txt"))
        check.equal([e.path for e in found], ["/tmp/a/b.txt"], "search")
        await sandbox.files.move_files([MoveEntry(src="/tmp/a/b.txt", dest="/tmp/c.txt")])
        check.true((await sandbox.get_metrics()).memory_total_in_mib > 0, "metrics")
        await sandbox.renew(timedelta(minutes=20))
        await sandbox.pause()
        await sandbox.resume()
        await sandbox.check_ready(timedelta(seconds=30), timedelta(milliseconds=100))
        check.equal(await sandbox.files.read_file("/tmp/c.txt"), "text", "file after resume")
        manager = await SandboxManager.create(connection_config=config)
        page = await manager.list_sandbox_infos(SandboxFilter(states=["Running"], metadata=check.METADATA))
        check.equal([str(i.id) for i in page.sandbox_infos], [str(sandbox.id)], "list")
        await manager.close()
    finally:
        await sandbox.kill()
        await sandbox.close()


asyncio.run(main())
