"""The asynchronous client of the newest official SDK against paddock."""

import asyncio
import io
from datetime import timedelta

import check
from opensandbox import Sandbox, SandboxManager
from opensandbox.config import ConnectionConfig
from opensandbox.exceptions import SandboxApiException, SandboxException
from opensandbox.models.execd import ExecutionHandlers, RunCommandOpts
from opensandbox.models.filesystem import (
    ContentReplaceEntry,
    DirectoryListEntry,
    MoveEntry,
    SearchEntry,
    SetPermissionEntry,
    WriteEntry,
)
from opensandbox.models.sandboxes import SandboxFilter


async def commands(sandbox):
    seen = []

    async def on(kind, message):
        seen.append((kind, message))

    handlers = ExecutionHandlers(
        on_stdout=lambda m: on("out", m.text.rstrip("\n")),
        on_stderr=lambda m: on("err", m.text.rstrip("\n")),
        on_init=lambda m: on("init", m.id),
        on_execution_complete=lambda m: on("complete", m.execution_time_in_millis >= 0),
        on_error=lambda m: on("error", m.value),
    )
    result = await sandbox.commands.run("echo one; echo two; echo three >&2", handlers=handlers)
    check.equal(check.output(result.logs.stdout), "one\ntwo", "stdout")
    check.equal(check.output(result.logs.stderr), "three", "stderr")
    check.equal(result.exit_code, 0, "exit code")
    check.equal(seen[0], ("init", result.id), "first event")
    check.equal(seen[-1], ("complete", True), "last event")
    check.equal([t for k, t in seen if k == "out"], ["one", "two"], "handled stdout")

    result = await sandbox.commands.run("printf 'a\\n\\nb'")
    # The contract's way to send a blank line; the SDK's own text loses it.
    check.equal([m.text for m in result.logs.stdout], ["a", "\n", "b"], "blank lines")
    result = await sandbox.commands.run("exit 7")
    check.equal((result.exit_code, result.error.value), (7, "7"), "a failing command")
    result = await sandbox.commands.run(["printf", "%s|%s", "$HOME", "a b"])
    check.equal(result.text, "$HOME|a b", "an argv")
    result = await sandbox.commands.run(
        'echo "$X $PWD $(id -u)"',
        opts=RunCommandOpts(working_directory="/tmp", envs={"X": "y z"}, uid=65534, gid=65534),
    )
    check.equal(result.text, "y z /tmp 65534", "options")
    result = await sandbox.commands.run("sleep 60", opts=RunCommandOpts(timeout=timedelta(milliseconds=300)))
    check.true(result.exit_code != 0, "a command past its time-out has no success")

    started = await sandbox.commands.run("echo begin; sleep 60", opts=RunCommandOpts(background=True))
    status = await sandbox.commands.get_command_status(started.id)
    check.true(status.running, "the background command runs")
    for _ in range(200):
        logs = await sandbox.commands.get_background_command_logs(started.id)
        if logs.content:
            break
        await asyncio.sleep(0.02)
    check.equal(logs.content, "begin\n", "background log")
    again = await sandbox.commands.get_background_command_logs(started.id, cursor=logs.cursor)
    check.equal(again.content, "", "background log from the cursor on")
    await sandbox.commands.interrupt(started.id)
    status = await sandbox.commands.get_command_status(started.id)
    check.true(not status.running and status.exit_code is not None, "it ended")

    session = await sandbox.commands.create_session(working_directory="/tmp")
    await sandbox.commands.run_in_session(session, "export KEPT=1; cd /etc")
    result = await sandbox.commands.run_in_session(session, 'echo "$KEPT $PWD"')
    check.equal(result.text, "1 /etc", "session state")
    result = await sandbox.commands.run_in_session(session, "false")
    check.equal(result.exit_code, 1, "exit code in a session")
    await sandbox.commands.delete_session(session)

    await sandbox.commands.set_env("STORED", "it's \"kept\"")
    result = await sandbox.commands.run('echo "$STORED"')
    check.equal(result.text, "it's \"kept\"", "a stored variable")


async def files(sandbox):
    f = sandbox.files
    await f.create_directories([WriteEntry(path="/tmp/d/e", mode=750)])
    await f.write_files(
        [
            WriteEntry(path="/tmp/d/a.txt", data="alpha\nbeta\n", mode=644),
            WriteEntry(path="/tmp/d/e/b.bin", data=bytes(range(256)), mode=600),
        ]
    )
    await f.write_file("/tmp/d/stream", io.BytesIO(b"x" * (3 << 20)))
    check.equal(await f.read_file("/tmp/d/a.txt"), "alpha\nbeta\n", "text")
    check.equal(await f.read_bytes("/tmp/d/e/b.bin"), bytes(range(256)), "bytes")
    check.equal(await f.read_bytes("/tmp/d/e/b.bin", range_header="bytes=10-19"), bytes(range(10, 20)), "a range")
    check.equal((await f.read_file("/tmp/d/a.txt", offset=2, limit=1)).rstrip("\n"), "beta", "a line")
    size = 0
    async for chunk in await f.read_bytes_stream("/tmp/d/stream"):
        size += len(chunk)
    check.equal(size, 3 << 20, "a streamed file")
    info = (await f.get_file_info(["/tmp/d/a.txt"]))["/tmp/d/a.txt"]
    check.equal((info.mode, info.size, info.owner), (644, 11, "root"), "info")
    found = await f.search(SearchEntry(path="/tmp/d", pattern="*.txt"))
    check.equal([e.path for e in found], ["/tmp/d/a.txt"], "search")
    listed = await f.list_directory(DirectoryListEntry(path="/tmp/d", depth=1))
    check.equal(sorted(e.path for e in listed), ["/tmp/d/a.txt", "/tmp/d/e", "/tmp/d/stream"], "list")
    await f.move_files([MoveEntry(src="/tmp/d/a.txt", dest="/tmp/d/moved.txt")])
    await f.replace_contents([ContentReplaceEntry(path="/tmp/d/moved.txt", old_content="beta", new_content="gamma")])
    check.equal(await f.read_file("/tmp/d/moved.txt"), "alpha\ngamma\n", "replaced")
    await f.set_permissions([SetPermissionEntry(path="/tmp/d/moved.txt", mode=400, owner="nobody", group="nogroup")])
    info = (await f.get_file_info(["/tmp/d/moved.txt"]))["/tmp/d/moved.txt"]
    check.equal((info.mode, info.owner, info.group), (400, "nobody", "nogroup"), "permissions")
    await f.delete_files(["/tmp/d/moved.txt"])
    await f.delete_directories(["/tmp/d"])
    try:
        await f.read_file("/tmp/d/moved.txt")
    except SandboxApiException as e:
        check.equal(e.status_code, 404, "status of a missing file")
    else:
        raise AssertionError("a removed file was read")


async def lifecycle(sandbox, config):
    info = await sandbox.get_info()
    check.equal((info.id, info.status.state, info.metadata), (sandbox.id, "Running", check.METADATA), "info")
    await sandbox.patch_metadata({"extra": "1"})
    renewed = await sandbox.renew(timedelta(minutes=30))
    check.equal((await sandbox.get_info()).expires_at, renewed.expires_at, "expiry")
    metrics = await sandbox.get_metrics()
    check.true(metrics.memory_total_in_mib > 0 and metrics.cpu_count > 0, f"metrics {metrics}")
    check.true(await sandbox.is_healthy(), "healthy")
    endpoint = await sandbox.get_endpoint(44772)
    check.true(sandbox.id in endpoint.endpoint, f"endpoint {endpoint.endpoint}")
    await sandbox.pause()
    check.equal((await sandbox.get_info()).status.state, "Paused", "state")
    resumed = await Sandbox.resume(sandbox.id, connection_config=config)
    check.equal((await resumed.commands.run("echo back")).text, "back", "after resume")
    connected = await Sandbox.connect(sandbox.id, connection_config=config)
    check.equal((await connected.commands.run("echo too")).text, "too", "after connect")
    async with await SandboxManager.create(connection_config=config) as manager:
        page = await manager.list_sandbox_infos(SandboxFilter(states=["Running"], metadata={**check.METADATA, "extra": "1"}))
        check.equal([i.id for i in page.sandbox_infos], [sandbox.id], "list")
        check.equal((await manager.get_sandbox_info(sandbox.id)).id, sandbox.id, "get")


async def errors(config):
    try:
        await Sandbox.create("no such image!", metadata=check.METADATA, connection_config=config)
    except SandboxException as e:
        check.true(e.error.code and e.error.message and e.request_id, f"error {e!r} {e.error!r} {e.request_id!r}")
        check.true("image" in e.error.message, e.error.message)
    else:
        raise AssertionError("an image that cannot be was made a sandbox")


async def scenario(use_server_proxy):
    config = ConnectionConfig(use_server_proxy=use_server_proxy)
    sandbox = await Sandbox.create(check.IMAGE, metadata=check.METADATA, env={"FROM_CREATE": "1"}, connection_config=config)
    try:
        await commands(sandbox)
        await files(sandbox)
        await lifecycle(sandbox, config)
    finally:
        await sandbox.kill()
    try:
        await sandbox.get_info()
    except SandboxApiException as e:
        check.equal(e.status_code, 404, "status of a killed sandbox")
    await errors(config)
    await sandbox.close()


async def main():
    for use_server_proxy in (False, True):
        await scenario(use_server_proxy)
    many = await asyncio.gather(
        *(Sandbox.create(check.IMAGE, metadata=check.METADATA, connection_config=ConnectionConfig()) for _ in range(10))
    )
    results = await asyncio.gather(*(s.commands.run(f"echo {i}") for i, s in enumerate(many)))
    check.equal([r.text for r in results], [str(i) for i in range(10)], "ten at once")
    await asyncio.gather(*(s.kill() for s in many))


asyncio.run(main())
