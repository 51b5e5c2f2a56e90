# The magics of the driver for Python: lines that begin with "%" or "!" and whole
# pieces of code that begin with "%%". This text is joined to python_extra.py.


class UsageError(Exception):
    """Raised for a magic that is unknown or used wrongly."""


CALL = "__import__('builtins').__paddock_magic__"
MAX_TRANSLATED = 2000


def translate(text, parse, error):
    """Turns magics into calls, one after another: where the parser stops at a
    line that is a magic, it becomes a call. A line that only looks like one,
    in a string for instance, never stops the parser. error is what it says of
    the text as it is."""
    import builtins

    builtins.__paddock_magic__ = magic
    stripped = text.lstrip()
    if stripped.startswith("%%"):
        head, _, body = stripped[2:].partition("\n")
        name, _, rest = head.partition(" ")
        return "%s(%r, %r, %r)" % (CALL, "%%" + name.strip(), rest.strip(), body)
    first = error
    lines = text.split("\n")
    for _ in range(MAX_TRANSLATED):
        number = (error.lineno or 0) - 1
        if not 0 <= number < len(lines):
            raise error
        changed = translate_line(lines[number])
        if changed is None:
            raise error if error.lineno != first.lineno else first
        lines[number] = changed
        text = "\n".join(lines)
        try:
            parse(text)
            return text
        except SyntaxError as next_error:
            error = next_error
    raise UsageError("more than %d lines with magics in one piece of code" % MAX_TRANSLATED)


def translate_line(line):
    """The call for one line, or None when it is no magic."""
    import re

    indent, body = re.match(r"(\s*)(.*)", line, re.S).groups()
    target = ""
    given = re.match(r"([A-Za-z_][\w., ]*?\s*=\s*)([%!].+)", body, re.S)
    if given:
        target, body = given.groups()
    body = body.rstrip()
    if body.startswith("!!"):
        return "%s%s%s('!!', %r)" % (indent, target, CALL, body[2:])
    if body.startswith("!"):
        return "%s%s%s(%r, %r)" % (indent, target, CALL, "!!" if target else "!", body[1:])
    if re.match(r"%[A-Za-z_]", body):
        name, _, rest = body[1:].partition(" ")
        return "%s%s%s(%r, %r)" % (indent, target, CALL, "%" + name, rest.strip())
    asked = re.match(r"(\?{1,2})?([A-Za-z_][\w.]*)(\?{1,2})?$", body)
    if asked and (asked.group(1) or asked.group(3)):
        return "%s%s('?', %r)" % (indent, CALL, asked.group(2))
    return None


def magic(name, rest, body=None):
    """What translated code calls."""
    if name == "!":
        return system(rest)
    if name == "!!":
        return captured(rest)
    if name == "?":
        return explain(rest)
    if name.startswith("%%"):
        function = CELLS.get(name[2:])
    else:
        function = LINES.get(name[1:])
    if function is None:
        kind, table, prefix = ("cell", CELLS, "%%") if name.startswith("%%") else ("line", LINES, "%")
        raise UsageError("the %s magic %s is not known here; known are %s"
                         % (kind, name, " ".join(prefix + n for n in sorted(table))))
    return function(rest, body) if name.startswith("%%") else function(rest)


# ---- commands ----


def expand(text):
    """Puts values of variables into a command: {expression} and $name, where
    that is a variable of the code; $$ is one dollar sign. Anything else is left
    to the shell."""
    import re

    def value(found):
        if found.group(0) == "$$":
            return "$"
        if found.group(2):
            name = found.group(2)
            return str(me.main[name]) if name in me.main else found.group(0)
        try:
            return str(eval(found.group(1), me.main))
        except Exception:
            return found.group(0)

    return re.sub(r"\$\$|(?<!\$)\{([^{}\n]+)\}|\$([A-Za-z_]\w*)", value, text)


def shell():
    import shutil

    return shutil.which("bash") or shutil.which("sh") or "/bin/sh"


def call(argv, **options):
    """Runs a program whose output is that of the code."""
    import subprocess

    core.flush()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, **options)
    me.main["_exit_code"] = done.returncode
    return done.returncode


def system(text):
    call([shell(), "-c", expand(text)])


def captured(text):
    import subprocess

    core.flush()
    done = subprocess.run([shell(), "-c", expand(text)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    me.main["_exit_code"] = done.returncode
    return done.stdout.decode("utf-8", "replace").splitlines()


def checked(code, what):
    if code != 0:
        raise UsageError("%s ended with exit status %d" % (what, code))


def script(program):
    def cell(rest, body):
        import shlex
        import subprocess

        argv = [*(program or []), *shlex.split(rest)]
        if not argv:
            raise UsageError("%%script needs the name of a program")
        core.flush()
        done = subprocess.run(argv, input=body.encode("utf-8", "surrogateescape"))
        me.main["_exit_code"] = done.returncode
        checked(done.returncode, argv[0])

    return cell


def pip(rest):
    import importlib
    import shlex

    argv = shlex.split(expand(rest))
    if argv[:1] == ["uninstall"] and not {"-y", "--yes"} & set(argv):
        argv.append("--yes")
    code = call([sys.executable, "-m", "pip", *argv])
    importlib.invalidate_caches()
    checked(code, "pip " + " ".join(argv[:1]))


def conda(rest):
    checked(call([shell(), "-c", "conda " + expand(rest)]), "conda")


# ---- directories and environment ----


def cd(rest):
    target = expand(rest.strip()).strip("'\"") or "~"
    if target == "-":
        if not getattr(me, "previous", None):
            raise UsageError("%cd -: there is no earlier directory")
        target = me.previous
    here = os.getcwd()
    os.chdir(os.path.expanduser(target))
    me.previous = here
    print(os.getcwd())


def env(rest):
    rest = rest.strip()
    if not rest:
        return dict(os.environ)
    name, equals, value = rest.partition("=")
    if not equals:
        name, _, value = rest.partition(" ")
        if not value:
            if name not in os.environ:
                raise UsageError("the environment variable %s is not set" % name)
            return os.environ[name]
    os.environ[name.strip()] = expand(value.strip())
    print("env: %s=%s" % (name.strip(), os.environ[name.strip()]))


# ---- time ----


def seconds(s):
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if s * factor >= 1:
            return "%.3g %s" % (s * factor, unit)
    return "%.3g ns" % (s * 1e9)


def run_text(text):
    """Runs text as code of its own, and returns the value of its last
    expression."""
    import ast

    name = "<cell %d>" % me.count
    flags = me.future | (core.TOP_LEVEL_AWAIT if sys.version_info >= (3, 8) else 0)

    def parse(t):
        return compile(t, name, "exec", flags | core.PyCF_ONLY_AST, True)

    try:
        tree = parse(text)
    except SyntaxError as error:
        tree = parse(translate(text, parse, error))
    last = None
    if tree.body and isinstance(tree.body[-1], core.Expr):
        last = ast.Expression(tree.body.pop().value)
    if tree.body:
        core.evaluate(compile(tree, name, "exec", flags, True))
    if last is not None:
        return core.evaluate(compile(last, name, "eval", flags, True))
    return None


def timed(text):
    import time

    begun, cpu = time.perf_counter(), os.times()
    try:
        return run_text(text)
    finally:
        wall, now = time.perf_counter() - begun, os.times()
        user, system_time = now.user - cpu.user, now.system - cpu.system
        print("CPU times: user %s, sys: %s, total: %s\nWall time: %s"
              % (seconds(user), seconds(system_time), seconds(user + system_time), seconds(wall)))


def timed_cell(rest, body):
    if rest:
        run_text(rest)
    value = timed(body)
    if value is not None:
        core.display(value)


def timeit(rest, body=None):
    import timeit as timing

    number, repeat = 0, 5
    words = rest.split()
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option[:2] not in ("-n", "-r"):
            raise UsageError("%%timeit knows the options -n and -r, not %s" % option)
        value = option[2:] or (words.pop(0) if words else "")
        if not value.isdigit() or int(value) == 0:
            raise UsageError("%%timeit %s needs a number from 1 on" % option[:2])
        if option[:2] == "-n":
            number = int(value)
        else:
            repeat = int(value)
    statement = " ".join(words)
    timer = timing.Timer(statement or body, globals=me.main) if body is None or not statement \
        else timing.Timer(body, setup=statement, globals=me.main)
    if not number:
        number, _ = timer.autorange()
    runs = [t / number for t in timer.repeat(repeat, number)]
    mean = sum(runs) / len(runs)
    spread = (sum((r - mean) ** 2 for r in runs) / len(runs)) ** 0.5
    print("%s ± %s per loop (mean ± std. dev. of %d runs, %d loops each)" % (seconds(mean), seconds(spread), repeat, number))


# ---- the rest ----


def explain(name):
    import pydoc

    try:
        value = eval(name, me.main)
    except Exception as error:
        raise UsageError("%s is not known: %s" % (name, error)) from None
    print(pydoc.plain(pydoc.render_doc(value)))


def matplotlib_magic(rest):
    if rest.strip() in ("", "inline", "agg", "widget", "notebook", "--list"):
        return
    raise UsageError("%%matplotlib %s needs a screen; figures are shown inline" % rest.strip())


def names_of_user():
    return [n for n in me.main if not n.startswith("_")]


def whos(rest):
    names = names_of_user()
    if not names:
        print("Interactive namespace is empty.")
        return
    print("%-20s %-16s %s" % ("Variable", "Type", "Data/Info"))
    for n in sorted(names):
        text = repr(me.main[n]).replace("\n", " ")
        print("%-20s %-16s %s" % (n, type(me.main[n]).__name__, text[:60] + ("…" if len(text) > 60 else "")))


def reset(rest):
    for n in names_of_user():
        del me.main[n]


def run_file(rest):
    import runpy
    import shlex

    argv = shlex.split(expand(rest))
    if not argv:
        raise UsageError("%run needs the name of a file")
    before = sys.argv
    sys.argv = argv
    try:
        for n, v in runpy.run_path(argv[0], run_name="__main__").items():
            if not n.startswith("__"):
                me.main[n] = v
    finally:
        sys.argv = before


def writefile(rest, body):
    import shlex

    words = shlex.split(expand(rest))
    append = "-a" in words or "--append" in words
    files = [w for w in words if w not in ("-a", "--append")]
    if len(files) != 1:
        raise UsageError("%%writefile needs the name of one file")
    path = os.path.expanduser(files[0])
    verb = "Appending to" if append else "Overwriting" if os.path.exists(path) else "Writing"
    with open(path, "a" if append else "w", encoding="utf-8") as f:
        f.write(body if body.endswith("\n") or not body else body + "\n")
    print("%s %s" % (verb, files[0]))


class Captured:
    """What %%capture has kept."""

    def __init__(self, stdout, stderr):
        self.stdout, self.stderr = stdout, stderr

    def show(self):
        sys.stdout.write(self.stdout)
        sys.stderr.write(self.stderr)

    __call__ = show

    def __str__(self):
        return self.stdout


def capture(rest, body):
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        run_text(body)
    names = [w for w in rest.split() if not w.startswith("-")]
    if names:
        me.main[names[0]] = Captured(out.getvalue(), err.getvalue())


def shown_as(mime):
    return lambda rest, body: core.display_data({mime: body})


def nothing(*ignored):
    pass


LINES = {
    "autoreload": nothing, "cd": cd, "conda": conda, "config": nothing,
    "env": env, "load_ext": nothing, "ls": lambda rest: system("ls " + rest),
    "lsmagic": lambda rest: print(" ".join(sorted("%" + n for n in LINES) + sorted("%%" + n for n in CELLS))),
    "matplotlib": matplotlib_magic, "mkdir": lambda rest: system("mkdir " + rest), "pip": pip,
    "precision": nothing, "pwd": lambda rest: os.getcwd(), "reset": reset, "run": run_file, "set_env": env,
    "sx": captured, "system": captured, "time": timed, "timeit": timeit,
    "who": lambda rest: print("\t".join(sorted(names_of_user()))), "whos": whos,
}

CELLS = {
    "bash": script(["bash"]), "capture": capture, "html": shown_as("text/html"), "HTML": shown_as("text/html"),
    "javascript": shown_as("application/javascript"), "js": shown_as("application/javascript"),
    "latex": shown_as("text/latex"), "markdown": shown_as("text/markdown"), "script": script(None),
    "sh": script(["sh"]), "svg": shown_as("image/svg+xml"), "SVG": shown_as("image/svg+xml"),
    "system": lambda rest, body: system(body), "time": timed_cell, "timeit": timeit, "writefile": writefile,
    "file": writefile,
}
