"""Adapters that give agents of LangChain's Deep Agents a sandbox.

The argument says which one. They are by different authors and keep to different
versions of Deep Agents, so each is in an environment of its own.
"""

import asyncio
import os
import sys

import suite
from deepagents import create_deep_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from opensandbox import SandboxSync
from opensandbox.config import ConnectionConfigSync

NAME = sys.argv[1]
# One of them puts lines of output together without their ends, which is what
# comes over the wire; what it makes of several lines is its own affair.
JOINS_LINES = NAME != "deepagents"

s = suite.Suite()


def backend_of(sandbox):
    if NAME == "langchain":
        from langchain_opensandbox import OpenSandboxSandbox

        return OpenSandboxSandbox(sandbox=sandbox)
    if NAME == "langchain-sandbox":
        from langchain_opensandbox import OpenSandboxBackend

        return OpenSandboxBackend(sandbox=sandbox, timeout=60)
    from deepagents_opensandbox import OpensandboxBackend

    return OpensandboxBackend(sandbox=sandbox)


def content(read):
    """What was read; the first releases of Deep Agents have it as a text."""
    if isinstance(read, str):
        return read
    return str(read.file_data)


def refused(read):
    return read.startswith("Error") if isinstance(read, str) else bool(read.error)


def paths(result):
    return sorted(e["path"].rstrip("/") for e in result)


@s.check("execute: output, errors, exit code, time-out")
def _(backend):
    result = backend.execute("echo out; exit 3")
    suite.equal((result.output.strip(), result.exit_code), ("out", 3), "result")
    suite.contains(backend.execute("echo bad >&2").output, "bad", "standard error")
    suite.true(backend.execute("sleep 60", timeout=1).exit_code != 0, "a command past its time-out has no success")
    if JOINS_LINES:
        suite.equal(backend.execute("seq 1000").output.split(), [str(i + 1) for i in range(1000)], "lines")


@s.check("upload and download: bytes, and errors by name")
def _(backend):
    data = bytes(range(256)) * 4096
    suite.equal([r.error for r in backend.upload_files([("/tmp/up.bin", data), ("/tmp/empty", b"")])], [None, None], "upload")
    got = backend.download_files(["/tmp/up.bin", "/tmp/empty", "/tmp/none"])
    suite.true(got[0].content == data and got[1].content == b"", "what went up came down")
    suite.equal(got[2].error, "file_not_found", "a missing file")
    if NAME != "langchain":
        # That one knows no other error.
        suite.equal(backend.download_files(["/tmp"])[0].error, "is_directory", "a directory")


@s.check("write, read, edit, ls, glob, grep")
def _(backend):
    backend.execute("mkdir -p /w/sub")
    suite.equal(backend.write("/w/a.txt", "alpha\nbeta\n").error, None, "write")
    suite.equal(backend.write("/w/sub/b.py", "print('beta')\n").error, None, "write")
    suite.true(backend.write("/w/a.txt", "again").error, "writing over a file")
    suite.equal(backend.execute("wc -l < /w/a.txt").output.strip(), "2", "what was written")
    edit = backend.edit("/w/a.txt", "beta", "gamma")
    suite.equal((edit.error, edit.occurrences), (None, 1), "edit")
    suite.equal(backend.execute("tail -n 1 /w/a.txt").output.strip(), "gamma", "what was edited")
    suite.true(backend.edit("/w/a.txt", "nowhere", "x").error, "editing what is not there")
    suite.contains(content(backend.read("/w/sub/b.py")), "beta", "read")
    suite.true(refused(backend.read("/w/none")), "reading what is not there")
    if not JOINS_LINES:
        return
    suite.contains(content(backend.read("/w/a.txt")), "gamma", "read")
    suite.equal(paths(backend.ls("/w").entries), ["/w/a.txt", "/w/sub"], "ls")
    suite.equal([os.path.basename(p) for p in paths(backend.glob("**/*.py", "/w").matches)], ["b.py"], "glob")
    matches = backend.grep("beta", "/w").matches
    suite.equal([(m["path"], m["line"]) for m in matches], [("/w/sub/b.py", 1)], "grep")


@s.check("the asynchronous half")
async def _(backend):
    suite.equal((await backend.aexecute("echo a")).output.strip(), "a", "execute")
    suite.equal((await backend.awrite("/w/async.txt", "x\n")).error, None, "write")
    suite.contains(content(await backend.aread("/w/async.txt")), "x", "read")
    suite.equal((await backend.aupload_files([("/tmp/async.bin", b"\0\1")]))[0].error, None, "upload")
    suite.equal((await backend.adownload_files(["/tmp/async.bin"]))[0].content, b"\0\1", "download")


class Script(BaseChatModel):
    """A model that says what it was told to, one message after another."""

    script: list
    said: int = 0

    @property
    def _llm_type(self):
        return "script"

    def bind_tools(self, tools, **_):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **_):
        message = self.script[self.said]
        self.said += 1
        return ChatResult(generations=[ChatGeneration(message=message)])


def uses(tool, n, **args):
    return AIMessage("", tool_calls=[{"name": tool, "args": args, "id": f"call-{n}"}])


@s.check("an agent writes a program, runs it and reads what it wrote")
async def _(backend):
    program = "open('/w/result', 'w').write(str(sum(range(10))))\n"
    model = Script(
        script=[
            uses("write_file", 1, file_path="/w/program.py", content=program),
            uses("execute", 2, command="python3 /w/program.py && echo done"),
            uses("read_file", 3, file_path="/w/result"),
            AIMessage("finished"),
        ]
    )
    agent = create_deep_agent(model=model, backend=backend)
    answer = await agent.ainvoke({"messages": [("user", "add")]})
    results = {m.tool_call_id: str(m.content) for m in answer["messages"] if m.type == "tool"}
    suite.contains(results["call-2"], "done", "execute")
    suite.contains(results["call-3"], "45", "read_file")


if NAME == "langchain":

    @s.check("a sandbox for each thread, found again")
    async def _(_):
        from types import SimpleNamespace

        from langchain_opensandbox.factory import SandboxFactory, aget_sandbox, get_backend, get_sandbox

        settings = {"thread_id": "t1", "opensandbox_url": suite.DOMAIN, "opensandbox_api_key": suite.API_KEY, "opensandbox_image": suite.IMAGE}
        runtime = SimpleNamespace(config={"configurable": settings})
        made, same = await asyncio.gather(aget_sandbox(runtime), aget_sandbox(runtime))
        try:
            suite.equal(made.id, same.id, "two at once")
            suite.equal(SandboxFactory(runtime)._find_sandbox_id(), made.id, "found")
            again = await asyncio.to_thread(get_sandbox, runtime)
            suite.equal(again.id, made.id, "found by the synchronous client")
            lazy = get_backend(runtime)
            await lazy.aexecute("echo kept > /tmp/kept")
            suite.equal((await asyncio.to_thread(lazy.execute, "cat /tmp/kept")).output.strip(), "kept", "state")
            await lazy.aclose()
            again.close()
        finally:
            await made.kill()
            await made.close()
            await same.close()


if NAME == "deepagents":

    @s.check("the provider: create, find again, delete")
    async def _(_):
        from deepagents_opensandbox import OpensandboxProvider

        provider = OpensandboxProvider()
        made = await asyncio.to_thread(lambda: provider.get_or_create(image=suite.IMAGE, timeout=300))
        suite.equal(made.execute("echo $((6 * 7))").output.strip(), "42", "output")
        other = OpensandboxProvider(use_server_proxy=True)
        found = await asyncio.to_thread(lambda: other.get_or_create(sandbox_id=made.id))
        suite.equal(found.execute("echo there").output.strip(), "there", "output")
        await asyncio.to_thread(lambda: provider.delete(sandbox_id=made.id))
        await asyncio.to_thread(lambda: other.delete(sandbox_id=made.id))
        made = await provider.aget_or_create(image=suite.IMAGE, timeout=300)
        suite.equal(made.execute("echo async").output.strip(), "async", "output")
        await provider.adelete(sandbox_id=made.id)


sandbox = SandboxSync.create(suite.IMAGE, metadata=suite.METADATA, connection_config=ConnectionConfigSync())
try:
    s.run_sync(backend_of(sandbox))
finally:
    sandbox.kill()
    sandbox.close()
