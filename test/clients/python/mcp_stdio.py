"""The official server of the Model Context Protocol, driven by the protocol's own client."""

import asyncio
import json
import os
import sys

import suite
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

s = suite.Suite()
box = {}


def content(result):
    """What a tool answered, as it was structured or as its text."""
    structured = getattr(result, "structured_content", None) or getattr(result, "structuredContent", None)
    if structured is not None:
        # What is not an object comes in one.
        return structured["result"] if list(structured) == ["result"] else structured
    text = "".join(getattr(c, "text", "") for c in result.content)
    try:
        return json.loads(text)
    except ValueError:
        return text


def failed(result):
    return bool(getattr(result, "is_error", False) or getattr(result, "isError", False))


async def call(session, name, **arguments):
    result = await session.call_tool(name, arguments)
    if failed(result):
        raise suite.Failure(f"{name}: {content(result)}")
    return content(result)


@s.check("tools: all that the server has")
async def _(session):
    names = {t.name for t in (await session.list_tools()).tools}
    for name in ("sandbox_create", "command_run", "file_read", "file_write", "sandbox_kill"):
        suite.true(name in names, f"{name} is not among {sorted(names)}")


@s.check("sandbox_create, get_info, list, healthcheck, metrics, renew, endpoint")
async def _(session):
    made = await call(session, "sandbox_create", image=suite.IMAGE, env={"A": "b c"}, metadata=suite.METADATA, timeout_seconds=600)
    box["id"] = id = made.get("sandbox_id") or made["id"]
    info = await call(session, "sandbox_get_info", sandbox_id=id)
    suite.contains(json.dumps(info), "Running", "info")
    suite.contains(json.dumps(await call(session, "sandbox_list", filter={"metadata": suite.METADATA, "states": ["Running"]})), id, "list")
    suite.true((await call(session, "sandbox_healthcheck", sandbox_id=id))["healthy"], "healthy")
    suite.true((await call(session, "sandbox_get_metrics", sandbox_id=id))["memory_total_in_mib"] > 0, "metrics")
    suite.true((await call(session, "sandbox_renew", sandbox_id=id, timeout_seconds=900))["expires_at"], "renew")
    suite.contains((await call(session, "sandbox_get_endpoint", sandbox_id=id, port=8080))["endpoint"], id, "endpoint")


@s.check("command_run and command_interrupt")
async def _(session):
    id = box["id"]
    result = json.dumps(await call(session, "command_run", sandbox_id=id, command='echo "$A"; echo bad >&2; exit 3', working_directory="/tmp"))
    for part in ("b c", "bad", '"exit_code": 3'):
        suite.contains(result, part, "result")
    started = await call(session, "command_run", sandbox_id=id, command="sleep 4321", background=True)
    await call(session, "command_interrupt", sandbox_id=id, execution_id=started["id"])
    result = json.dumps(await call(session, "command_run", sandbox_id=id, command="pgrep -f 'sleep 432[1]' || echo none"))
    suite.contains(result, "none", "it was ended")


@s.check("files")
async def _(session):
    id = box["id"]
    await call(session, "file_create_directories", sandbox_id=id, entries=[{"path": "/tmp/d", "mode": 755}])
    await call(session, "file_write", sandbox_id=id, path="/tmp/d/a.txt", content="alpha\nbeta\n", mode=644)
    suite.equal((await call(session, "file_read", sandbox_id=id, path="/tmp/d/a.txt"))["content"], "alpha\nbeta\n", "read")
    suite.contains(json.dumps(await call(session, "file_search", sandbox_id=id, path="/tmp/d", pattern="*.txt")), "/tmp/d/a.txt", "search")
    await call(session, "file_move", sandbox_id=id, entries=[{"src": "/tmp/d/a.txt", "dest": "/tmp/d/b.txt"}])
    await call(
        session, "file_replace_contents", sandbox_id=id, entries=[{"path": "/tmp/d/b.txt", "old_content": "beta", "new_content": "gamma"}]
    )
    suite.equal((await call(session, "file_read", sandbox_id=id, path="/tmp/d/b.txt", range_header="bytes=6-10"))["content"], "gamma", "a range")
    await call(session, "file_delete", sandbox_id=id, paths=["/tmp/d/b.txt"])
    result = await session.call_tool("file_read", {"sandbox_id": id, "path": "/tmp/d/b.txt"})
    # The server keeps the SDK's words from the model.
    suite.true(failed(result), "a removed file was read")
    await call(session, "file_delete_directories", sandbox_id=id, paths=["/tmp/d"])


# No check of a refused create or connect: the SDK makes such an exception its own
# cause, and the server, which logs it with all its causes, never ends doing so.


@s.check("sandbox_kill")
async def _(session):
    await call(session, "sandbox_kill", sandbox_id=box["id"])
    suite.true(box["id"] not in json.dumps(await call(session, "sandbox_list", filter={"metadata": suite.METADATA})), "it is gone")


async def main():
    program = os.path.join(os.path.dirname(sys.executable), "opensandbox-mcp")
    server = StdioServerParameters(command=program, args=["--domain", suite.DOMAIN, "--api-key", suite.API_KEY], env=dict(os.environ))
    async with stdio_client(server) as (read, write):
        async with ClientSession(read, write) as session:
            await session.initialize()
            await s.run(session)


asyncio.run(main())
