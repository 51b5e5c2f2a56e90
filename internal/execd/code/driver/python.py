# The part of the driver for Python that every run needs. It is executed in a
# namespace of its own; the user's code has __main__. Imports are few, because
# each would delay the first run: what most runs don't need is in the second
# part, python_extra.py.
#
# It runs with Python 3.6 and later; await outside of functions needs 3.8.

import builtins
import os
import sys

import _signal
import _thread
from _ast import Expr, Expression, PyCF_ONLY_AST

try:
    from _json import encode_basestring_ascii as quote
except ImportError:
    from json.encoder import encode_basestring_ascii as quote

ORDERS, REPORTS, CORE, EXTRA, ACKS, HALTS, WATCH = 3, 4, 5, 6, 7, 8, 9

TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, since Python 3.8
CO_COROUTINE = 0x80  # inspect.CO_COROUTINE
SIGINT = 2

# What is kept of the code of earlier runs, for tracebacks.
MAX_CELLS = 500
MAX_CELL_TEXT = 16 << 20
# The longest text of a simple value. Larger ones are cut.
MAX_TEXT = 1 << 20

PLAIN = (int, float, bool, complex, type(None))


class Driver:
    """What the driver knows; one object, so that nothing of it is global."""

    pid = os.getpid()
    main = sys.modules["__main__"].__dict__
    # The number of the run as execd counts, and as the user sees it.
    run = 0
    count = 0
    # True while the user's code runs and may be interrupted.
    live = False
    # An interrupt that came while it had to wait.
    held = False
    pending = False
    # True when the run's last report has been sent.
    reported = False
    cells = {}
    cell_text = 0
    # Flags of "from __future__ import", which hold for all later runs.
    future = 0
    loop = None
    second = None
    # The user's own SIGINT handler, while it must not be in place.
    handler = None
    reports = _thread.allocate_lock()
    displays = _thread.allocate_lock()
    buffer = b""


me = Driver()


def encode(value):
    if isinstance(value, str):
        return quote(value)
    if value is True or value is False or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if type(value) is int:
        return str(value)
    if type(value) is dict:
        return "{" + ",".join(quote(str(k)) + ":" + encode(v) for k, v in value.items()) + "}"
    if type(value) in (list, tuple):
        return "[" + ",".join(map(encode, value)) + "]"
    import json

    return json.dumps(value, default=str, allow_nan=False)


def send(kind, **fields):
    """Sends one report."""
    fields["t"] = kind
    fields["n"] = me.run
    line = (encode(fields) + "\n").encode("ascii")
    with me.reports:
        while line:
            line = line[os.write(REPORTS, line):]


def display_data(data):
    """Sends a bundle that is shown while the code goes on. It returns when
    everything printed before and the bundle itself have been passed on, so that
    what is printed afterwards comes afterwards."""
    flush()
    with me.displays:
        me.held = True
        try:
            send("display", data=data)
            os.read(ACKS, 1)
        finally:
            me.held = False
    if me.pending:
        me.pending = False
        raise KeyboardInterrupt


def extra():
    """The second part of the driver."""
    if me.second is None:
        text = os.pread(EXTRA, 1 << 20, 0)
        os.close(EXTRA)
        second = {"__name__": "paddock_driver_extra", "me": me, "core": core}
        exec(compile(text, "<paddock driver>", "exec"), second)
        me.second = Namespace(second)
    return me.second


class Namespace:
    def __init__(self, names):
        self.__dict__ = names


core = Namespace(globals())


def display(*objects, **options):
    """Shows objects in their richest form."""
    extra().display(*objects, **options)


class StdinNotImplementedError(NotImplementedError):
    """Raised by input(): there is nobody who could answer."""


def refuse_input(prompt="", *rest):
    raise StdinNotImplementedError(
        "input() can't be used here: nobody is there to answer. Put the value into the code, or read it from a file."
    )


def leave(code=None):
    """exit() and quit(): those of Python close the standard input, too."""
    raise SystemExit(code)


def on_interrupt(number, frame):
    if me.held:
        me.pending = True
    elif me.live:
        raise KeyboardInterrupt


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            # Closed or replaced by the user's code, whose business it is.
            pass


# ---- source texts, for tracebacks ----


def remember(name, text):
    me.cells[name] = text
    me.cell_text += len(text)
    lines = sys.modules.get("linecache")
    if lines is not None:
        fill(lines, name)
    while len(me.cells) > MAX_CELLS or me.cell_text > MAX_CELL_TEXT and len(me.cells) > 1:
        old = next(iter(me.cells))
        me.cell_text -= len(me.cells.pop(old))
        if lines is not None:
            lines.cache.pop(old, None)


def fill(lines, name):
    text = me.cells[name]
    lines.cache[name] = (len(text), None, [line + "\n" for line in text.split("\n")], name)


class Loaded:
    """A loader that calls a function after it has loaded the module."""

    def __init__(self, loader, then):
        self.loader = loader
        self.then = then

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then(module)


class Watch:
    """A finder that sees some imports before they happen."""

    names = {"linecache", "matplotlib.pyplot", "paddock_figures", "IPython", "IPython.display"}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in cls.names:
            return None
        if name == "linecache":
            return cls.then(cls.find(name, path, target), lambda lines: [fill(lines, c) for c in me.cells])
        return extra().find_spec(cls, name, path, target)

    @classmethod
    def find(cls, name, path, target):
        for finder in sys.meta_path:
            if finder is not cls and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None

    @staticmethod
    def then(spec, function):
        if spec is not None and spec.loader is not None:
            spec.loader = Loaded(spec.loader, function)
        return spec


# ---- running code ----


def parse(text, name, flags):
    return compile(text, name, "exec", flags | PyCF_ONLY_AST, True)


def execute(text, show):
    """Runs a piece of code. show is called with the value of a last
    expression."""
    name = "<cell %d>" % me.count
    remember(name, text)
    flags = me.future
    if sys.version_info >= (3, 8):
        flags |= TOP_LEVEL_AWAIT
    try:
        tree = parse(text, name, flags)
    except SyntaxError as error:
        # Only what is no Python can have magics: they never change the
        # meaning of code that runs elsewhere.
        if not any(c in text for c in "%!?"):
            raise
        text = extra().translate(text, lambda t: parse(t, name, flags), error)
        tree = parse(text, name, flags)
    if "__future__" in text:
        import __future__

        for f in __future__.all_feature_names:
            me.future_flags = getattr(me, "future_flags", 0) | getattr(__future__, f).compiler_flag
    body = tree.body
    last = None
    if body and isinstance(body[-1], Expr) and not text.rstrip().endswith(";"):
        last = Expression(body.pop().value)
    if body:
        code = compile(tree, name, "exec", flags, True)
        me.future |= code.co_flags & getattr(me, "future_flags", 0)
        evaluate(code)
    if last is not None:
        value = evaluate(compile(last, name, "eval", flags | me.future, True))
        if value is not None:
            show(value)
    if "matplotlib.pyplot" in sys.modules:
        extra().show_figures()


def evaluate(code):
    if not code.co_flags & CO_COROUTINE:
        return eval(code, me.main)
    import asyncio

    if me.loop is None or me.loop.is_closed():
        me.loop = asyncio.new_event_loop()
    asyncio.set_event_loop(me.loop)
    task = me.loop.create_task(eval(code, me.main))
    try:
        return me.loop.run_until_complete(task)
    except KeyboardInterrupt:
        # The code may want to clean up.
        task.cancel()
        try:
            me.loop.run_until_complete(task)
        except (asyncio.CancelledError, Exception):
            pass
        raise


def show(value):
    main = me.main
    main["___"], main["__"], main["_"] = main.get("__"), main.get("_"), value
    if type(value) in PLAIN or type(value) in (str, bytes) and len(value) <= MAX_TEXT // 4:
        text = repr(value)
        if len(text) > MAX_TEXT:
            text = "%s… (%d characters in all)" % (text[:MAX_TEXT], len(text))
        data = {"text/plain": text}
    else:
        data = extra().bundle(value)
    if data:
        flush()
        send("result", data=data, count=me.count)


def guarded(function, *arguments):
    """Calls a function of the user's making. Interrupts end nothing else."""
    try:
        try:
            me.live = True
            function(*arguments)
        finally:
            me.live = False
    except BaseException as error:
        me.live = False
        return error
    return None


def run(n, text):
    me.run = n
    me.count += 1
    me.reported = me.held = me.pending = False
    if me.handler is not None:
        _signal.signal(SIGINT, me.handler)
        me.handler = None

    def work():
        send("busy")
        execute(text, show)

    error = guarded(work)
    if os.getpid() != me.pid:
        # A child that the code has forked came here.
        flush()
        os._exit(0 if error is None else 1)
    guarded(flush)
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    if error is None:
        me.reported = True
        send("done", count=me.count)
        return
    report = {}
    if guarded(lambda: report.update(extra().describe(error))) is not None:
        report = {"ename": type(error).__name__, "evalue": "", "traceback": []}
    me.reported = True
    send("error", count=me.count, **report)


def settle_handler():
    """Between two runs nobody else's handler may be called."""
    try:
        now = _signal.getsignal(SIGINT)
        if now is not on_interrupt:
            me.handler = now
            _signal.signal(SIGINT, on_interrupt)
    except Exception:
        pass


def read():
    """Waits for an order's bytes. Tasks that earlier code has left in the event
    loop go on meanwhile."""
    loop = me.loop
    if loop is not None and not loop.is_closed():
        import asyncio

        if asyncio.all_tasks(loop):
            ready = loop.create_future()
            loop.add_reader(ORDERS, lambda: ready.done() or ready.set_result(None))
            try:
                loop.run_until_complete(ready)
            finally:
                loop.remove_reader(ORDERS)
    return os.read(ORDERS, 1 << 20)


def next_order():
    """Returns the next run's number and code, or None at the end."""
    while b"\n" not in me.buffer:
        more = read()
        if not more:
            return None
        me.buffer += more
    line, rest = me.buffer.split(b"\n", 1)
    _, n, size = line.split()
    size = int(size)
    parts = [rest]
    have = len(rest)
    while have < size:
        more = os.read(ORDERS, 1 << 20)
        if not more:
            return None
        parts.append(more)
        have += len(more)
    text = b"".join(parts)
    me.buffer = text[size:]
    return int(n), text[:size].decode("utf-8", "replace")


def prepare():
    for fd in (ORDERS, REPORTS, CORE, EXTRA, ACKS):
        os.set_inheritable(fd, False)
    for fd in (CORE, HALTS, WATCH):
        os.close(fd)
    _signal.signal(SIGINT, on_interrupt)
    me.main.pop("os", None)
    me.main.setdefault("__name__", "__main__")
    sys.argv = [""]
    sys.meta_path.insert(0, Watch)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    builtins.input = refuse_input
    builtins.exit = builtins.quit = leave
    builtins.display = display


def loop():
    prepare()
    send("ready")
    while True:
        settle_handler()
        try:
            order = next_order()
        except KeyboardInterrupt:
            continue
        if order is None:
            return
        try:
            run(*order)
        except BaseException as error:
            me.live = False
            if os.getpid() != me.pid:
                os._exit(1)
            if not me.reported:
                send("error", count=me.count, ename=type(error).__name__, evalue="", traceback=[])


loop()
