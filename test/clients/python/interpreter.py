"""The official client of the code interpreter, in an image that was not made for it."""

import asyncio
import time
from datetime import timedelta

import suite
from code_interpreter import CodeInterpreter, CodeInterpreterSync
from code_interpreter.models.code import CodeContext, SupportedLanguage
from opensandbox import Sandbox, SandboxSync
from opensandbox.config import ConnectionConfig, ConnectionConfigSync
from opensandbox.exceptions import SandboxApiException, SandboxException
from opensandbox.models.execd import ExecutionHandlers
from opensandbox.models.filesystem import WriteEntry

s = suite.Suite()


def value(result):
    """The text of the value of the last expression."""
    return result.result[-1].text if result.result else None


@s.check("health: the strict check of the runtime holds")
async def _(ci):
    suite.true(await ci.ping(), "ping")
    suite.true(await ci.is_healthy(), "healthy")
    await ci.check_ready(timedelta(seconds=5), timedelta(milliseconds=50))


@s.check("python: output, value, state")
async def _(ci):
    context = await ci.codes.create_context(SupportedLanguage.PYTHON)
    suite.true(context.id and context.language == "python", f"context {context}")
    first = await ci.codes.run("import math\nx = 41\nprint('hello')\nx + 1", context=context)
    suite.equal((suite.text(first.logs.stdout), value(first), first.error), ("hello", "42", None), "first run")
    suite.true(first.id, "an id")
    second = await ci.codes.run("x += 1\nmath.factorial(5) + x", context=context)
    suite.equal(value(second), "162", "second run")
    suite.true(second.execution_count == first.execution_count + 1, f"counts {first.execution_count}, {second.execution_count}")


@s.check("python: the default context of a language")
async def _(ci):
    await ci.codes.run("kept = 'yes'", language=SupportedLanguage.PYTHON)
    suite.equal(value(await ci.codes.run("kept", language="python")), "'yes'", "by language")
    suite.equal(value(await ci.codes.run("kept")), "'yes'", "without one")
    suite.equal(value(await ci.codes.run("kept", context=CodeContext(language="python"))), "'yes'", "a context without id")


@s.check("python: events in their order")
async def _(ci):
    seen = []

    def on(kind):
        async def add(event):
            seen.append((kind, getattr(event, "text", None)))

        return add

    handlers = ExecutionHandlers(
        on_init=on("init"), on_stdout=on("out"), on_stderr=on("err"), on_result=on("result"), on_error=on("error"), on_execution_complete=on("complete")
    )
    result = await ci.codes.run("import sys\nprint('a')\nprint('b', file=sys.stderr)\n'c'", language="python", handlers=handlers)
    kinds = [k for k, _ in seen]
    # The order of the two streams is not promised.
    suite.equal((kinds[0], sorted(kinds[1:3]), kinds[3:]), ("init", ["err", "out"], ["result", "complete"]), "kinds")
    suite.equal(sorted((k, t.strip()) for k, t in seen if k in ("out", "err")), [("err", "b"), ("out", "a")], "texts")
    suite.true(result.complete is None or result.complete.execution_time_in_millis >= 0, "time")


@s.check("python: errors carry name, value and the user's lines")
async def _(ci):
    result = await ci.codes.run("def f():\n    return 1 / 0\nf()", language="python")
    suite.equal((result.error.name, result.error.value), ("ZeroDivisionError", "division by zero"), "error")
    suite.contains("\n".join(result.error.traceback), "return 1 / 0", "traceback")
    result = await ci.codes.run("print('before')\nraise KeyError('k')", language="python")
    suite.equal((suite.text(result.logs.stdout), result.error.name), ("before", "KeyError"), "output and error")
    result = await ci.codes.run("def broken(:", language="python")
    suite.equal(result.error.name, "SyntaxError", "a syntax error")
    suite.equal(value(await ci.codes.run("6 * 7", language="python")), "42", "it goes on")


@s.check("python: contexts do not see each other, and run at once")
async def _(ci):
    contexts = await asyncio.gather(*(ci.codes.create_context("python") for _ in range(4)))
    await asyncio.gather(*(ci.codes.run(f"n = {i}", context=c) for i, c in enumerate(contexts)))
    began = time.monotonic()
    results = await asyncio.gather(*(ci.codes.run("import time; time.sleep(1)\nn", context=c) for c in contexts))
    suite.equal([value(r) for r in results], ["0", "1", "2", "3"], "values")
    suite.true(time.monotonic() - began < 3.5, "they ran one after another")
    for c in contexts:
        await ci.codes.delete_context(c.id)


@s.check("python: files of the sandbox are the code's")
async def _(ci):
    await ci.files.write_files([WriteEntry(path="/tmp/data.txt", data="from outside", mode=644)])
    result = await ci.codes.run("open('/tmp/out.txt', 'w').write('from inside')\nprint(open('/tmp/data.txt').read())", language="python")
    suite.equal(suite.text(result.logs.stdout), "from outside", "read")
    suite.equal(await ci.files.read_file("/tmp/out.txt"), "from inside", "written")
    suite.equal((await ci.commands.run("cat /tmp/out.txt")).text, "from inside", "a command")


@s.check("python: an interrupt ends the run and keeps the state")
async def _(ci):
    context = await ci.codes.create_context("python")
    await ci.codes.run("before = 'kept'", context=context)
    started = asyncio.get_running_loop().create_future()

    async def on_init(event):
        if not started.done():
            started.set_result(event.id)

    run = asyncio.ensure_future(
        ci.codes.run("import time\nwhile True: time.sleep(0.05)", context=context, handlers=ExecutionHandlers(on_init=on_init))
    )
    await ci.codes.interrupt(await asyncio.wait_for(started, 10))
    result = await asyncio.wait_for(run, 15)
    suite.equal(result.error.name, "KeyboardInterrupt", "error")
    suite.equal(value(await ci.codes.run("before", context=context)), "'kept'", "state")


@s.check("python: a second run in a busy context is refused")
async def _(ci):
    context = await ci.codes.create_context("python")
    started = asyncio.get_running_loop().create_future()

    async def on_init(event):
        if not started.done():
            started.set_result(event.id)

    run = asyncio.ensure_future(ci.codes.run("import time; time.sleep(20)", context=context, handlers=ExecutionHandlers(on_init=on_init)))
    id = await asyncio.wait_for(started, 10)
    with suite.raises(SandboxApiException, "the second run") as got:
        await ci.codes.run("1", context=context)
    suite.contains(str(got.error).lower(), "busy", "the text")
    await ci.codes.interrupt(id)
    await asyncio.wait_for(run, 15)


@s.check("python: a dead interpreter says so and starts anew")
async def _(ci):
    context = await ci.codes.create_context("python")
    result = await ci.codes.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", context=context)
    suite.true(result.error is not None, "an error")
    suite.equal(value(await ci.codes.run("1 + 1", context=context)), "2", "after it")


@s.check("python: rich results")
async def _(ci):
    code = "class T:\n    def _repr_html_(self): return '<b>t</b>'\n    def __repr__(self): return 'T()'\nT()"
    result = await ci.codes.run(code, language="python")
    # The client keeps the text alone; the rest must not hinder it.
    suite.equal(value(result), "T()", "text")


@s.check("bash: state")
async def _(ci):
    context = await ci.codes.create_context(SupportedLanguage.BASH)
    await ci.codes.run("greet() { echo \"hi $1\"; }; cd /tmp; V=7", context=context)
    result = await ci.codes.run("greet you; echo $V $PWD", context=context)
    suite.equal(suite.text(result.logs.stdout), "hi you\n7 /tmp", "kept")
    result = await ci.codes.run("false", context=context)
    suite.true(result.error is not None, "a failing line is an error")


@s.check("javascript: state")
async def _(ci):
    context = await ci.codes.create_context(SupportedLanguage.JAVASCRIPT)
    await ci.codes.run("const a = 20; let b = 1;", context=context)
    result = await ci.codes.run("console.log('out'); b++; a * b + 2", context=context)
    suite.equal((suite.text(result.logs.stdout), value(result)), ("out", "42"), "second run")
    result = await ci.codes.run("throw new TypeError('bad')", context=context)
    suite.equal(result.error.name, "TypeError", "error")


@s.check("languages that the image lacks are refused, with the program that is missing")
async def _(ci):
    for language, program in ((SupportedLanguage.JAVA, "java"), (SupportedLanguage.GO, "go")):
        with suite.raises(SandboxException, language) as got:
            await ci.codes.create_context(language)
        suite.contains(str(got.error).lower(), program, language)
    with suite.raises(SandboxException, "nonsense"):
        await ci.codes.create_context("brainfog")


@s.check("contexts: get, list, delete")
async def _(ci):
    a = await ci.codes.create_context("bash")
    b = await ci.codes.create_context("bash")
    suite.equal((await ci.codes.get_context(a.id)).language, "bash", "get")
    listed = [c.id for c in await ci.codes.list_contexts("bash")]
    suite.true(a.id in listed and b.id in listed, f"list {listed}")
    await ci.codes.delete_context(a.id)
    with suite.raises(SandboxApiException, "get") as got:
        await ci.codes.get_context(a.id)
    suite.equal(got.error.status_code, 404, "status")
    with suite.raises(SandboxApiException, "delete") as got:
        await ci.codes.delete_context(a.id)
    suite.equal(got.error.status_code, 404, "status")
    with suite.raises(SandboxApiException, "run") as got:
        await ci.codes.run("true", context=a)
    suite.contains(str(got.error).lower(), "context", "the text")
    await ci.codes.delete_contexts("bash")
    suite.equal(await ci.codes.list_contexts("bash"), [], "all of a language")


@s.check("output: large, unicode, without a newline")
async def _(ci):
    result = await ci.codes.run("print('ä漢🙂')\nfor i in range(20000): print(i)\nprint('end', end='')", language="python")
    lines = suite.text(result.logs.stdout).split("\n")
    suite.equal((lines[0], lines[-1], len(lines)), ("ä漢🙂", "end", 20002), "lines")


async def synchronous():
    def run():
        config = ConnectionConfigSync()
        with SandboxSync.create(suite.IMAGE, metadata=suite.METADATA, connection_config=config) as sandbox:
            try:
                ci = CodeInterpreterSync.create(sandbox=sandbox)
                context = ci.codes.create_context("python")
                ci.codes.run("v = 2", context=context)
                suite.equal(value(ci.codes.run("v ** 10", context=context)), "1024", "value")
                suite.equal([c.id for c in ci.codes.list_contexts("python")], [context.id], "list")
                ci.codes.delete_context(context.id)
            finally:
                sandbox.kill()

    await asyncio.to_thread(run)


async def main():
    sandbox = await Sandbox.create(suite.IMAGE, metadata=suite.METADATA, connection_config=ConnectionConfig())
    try:
        ci = await CodeInterpreter.create(sandbox=sandbox, ready_timeout=timedelta(seconds=10))
        await s.run(ci)
        await ci.aclose()
        sync = suite.Suite()
        sync.check("synchronous client")(synchronous)
        await sync.run()
    finally:
        await sandbox.destroy()


asyncio.run(main())
