# The part of the driver for Python that only some runs need: rich results,
# figures, errors and magics. It is executed when it is first used; "core" is
# the first part and "me" its state.

import os
import sys

# The longest line of a report that execd takes, less some room.
MAX_BUNDLE = (4 << 20) - (96 << 10)
MAX_TEXT = 1 << 20
MAX_FRAMES = 100

METHODS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_latex_", "text/latex"),
    ("_repr_json_", "application/json"),
    ("_repr_javascript_", "application/javascript"),
    ("_repr_pdf_", "application/pdf"),
)


def note(text):
    core.flush()
    print("[%s]" % text, file=sys.stderr, flush=True)


# ---- values ----


def plain(value):
    """The text of a value. Nested containers are laid out on many lines."""
    text = repr(value)
    if len(text) > 79 and type(value) in (dict, list, tuple, set, frozenset) and len(text) <= MAX_TEXT:
        import pprint

        options = {"sort_dicts": False} if sys.version_info >= (3, 8) else {}
        text = pprint.pformat(value, width=79, compact=True, **options)
    if len(text) > MAX_TEXT:
        text = "%s… (%d characters in all)" % (text[:MAX_TEXT], len(text))
    return text


def binary(value):
    if isinstance(value, (bytes, bytearray, memoryview)):
        import binascii

        return binascii.b2a_base64(bytes(value), newline=False).decode("ascii")
    return value


def without_metadata(value):
    return value[0] if isinstance(value, tuple) and len(value) == 2 else value


def bundle(value):
    """All representations of a value by MIME type; None when the value shows
    itself."""
    if isinstance(value, type):
        return fit({"text/plain": plain(value)})
    own = getattr(value, "_ipython_display_", None)
    if callable(own):
        own()
        return None
    data = {}
    whole = getattr(value, "_repr_mimebundle_", None)
    if callable(whole):
        try:
            given = without_metadata(whole(include=None, exclude=None))
            if given:
                data.update(given)
        except Exception as error:
            note("%s._repr_mimebundle_ failed: %s: %s" % (type(value).__name__, type(error).__name__, error))
    for method, kind in METHODS:
        if kind in data:
            continue
        function = getattr(value, method, None)
        if not callable(function):
            continue
        try:
            given = without_metadata(function())
        except NotImplementedError:
            continue
        except Exception as error:
            note("%s.%s failed: %s: %s" % (type(value).__name__, method, type(error).__name__, error))
            continue
        if given is not None:
            data[kind] = given
    if not data:
        figure = as_figure(value)
        if figure:
            data.update(figure)
    if "text/plain" not in data:
        data["text/plain"] = plain(value)
    return fit(data)


def fit(data):
    """Leaves out what is too large for one event."""
    sizes = {}
    kept = {}
    for kind, value in data.items():
        value = binary(value)
        if not isinstance(value, str) and not is_json(kind):
            value = str(value)
        kept[str(kind)] = value
        try:
            sizes[str(kind)] = len(core.encode(value))
        except (TypeError, ValueError, RecursionError) as error:
            note("the result of type %s was left out: it is not valid JSON: %s" % (kind, error))
            kept.pop(str(kind))
    while sum(sizes.get(k, 0) for k in kept) > MAX_BUNDLE:
        largest = max(kept, key=lambda k: sizes[k])
        kept.pop(largest)
        note("the result of type %s was left out: it has %d bytes, and all types of a result together may have %d"
             % (largest, sizes[largest], MAX_BUNDLE))
    return kept


def is_json(kind):
    return kind == "application/json" or str(kind).endswith("+json")


def display(*objects, raw=False, display_id=None, clear=False, include=None, exclude=None, metadata=None, transient=None, **options):
    for value in objects:
        data = fit(dict(value)) if raw else bundle(value)
        if data:
            data = {k: v for k, v in data.items() if (not include or k in include) and (not exclude or k not in exclude)}
        if not data:
            continue
        if os.getpid() != me.pid:
            print(data.get("text/plain", ""))
            continue
        core.display_data(data)


# ---- figures ----


def as_figure(value):
    """A figure of matplotlib as a picture."""
    module = sys.modules.get("matplotlib.figure")
    if module is None or not isinstance(value, module.Figure):
        return None
    plots = sys.modules.get("matplotlib.pyplot")
    number = getattr(value, "number", None)
    if plots is not None and number is not None and plots.fignum_exists(number):
        # It is not to be shown once more at the end of the run.
        plots.close(value)
    return {"image/png": picture(value), "text/plain": repr(value)}


def picture(figure):
    import io

    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", facecolor=figure.get_facecolor())
    return out.getvalue()


def show_figures(*ignored, **options):
    """Shows all open figures and closes them."""
    plots = sys.modules.get("matplotlib.pyplot")
    if plots is None:
        return
    try:
        for number in plots.get_fignums():
            figure = plots.figure(number)
            if figure.get_axes() or figure.lines or figure.texts or figure.images:
                display({"image/png": picture(figure), "text/plain": repr(figure)}, raw=True)
    finally:
        plots.close("all")


def quiet_backend():
    """Chooses a backend that draws without a screen, unless somebody has chosen
    one, before pyplot is loaded."""
    import matplotlib

    if os.environ.get("MPLBACKEND"):
        return
    try:
        chosen = dict.__getitem__(matplotlib.rcParams, "backend")
    except KeyError:
        chosen = None
    if not isinstance(chosen, str) or chosen.lower() == "agg":
        matplotlib.rcParams["backend"] = "agg"


def patch_pyplot(plots):
    if plots.get_backend().lower() == "agg":
        plots.show = show_figures


# ---- modules that are imported ----


def find_spec(watch, name, path, target):
    if name == "matplotlib.pyplot":
        quiet_backend()
        return watch.then(watch.find(name, path, target), patch_pyplot)
    spec = watch.find(name, path, target)
    if name == "IPython":
        return spec or stand_in(name)
    if name == "IPython.display":
        if spec is None and getattr(sys.modules.get("IPython"), "__paddock__", False):
            return stand_in(name)
        return watch.then(spec, patch_display)
    return spec


def patch_display(module):
    """IPython's own display needs its shell; ours takes its place."""
    module.display = display
    inner = sys.modules.get("IPython.core.display_functions")
    if inner is not None:
        inner.display = display


class StandIn:
    """Loads a small module in place of IPython where that is not installed: code
    written for notebooks imports it for display and its classes alone."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "IPython":
            module.__paddock__ = True
            module.get_ipython = lambda: None
            module.display = __import__("importlib").import_module("IPython.display")
            return
        for kind in (Rich, HTML, Markdown, Latex, Math, SVG, JSON, Javascript, Pretty, Code, Image):
            setattr(module, kind.__name__, kind)
        module.DisplayObject = Rich
        module.display = display
        module.clear_output = lambda wait=False: None
        for kind in ("html", "markdown", "latex", "svg", "json", "javascript", "png", "jpeg"):
            setattr(module, "display_" + kind, shower(kind))


def shower(kind):
    mime = {"html": "text/html", "markdown": "text/markdown", "latex": "text/latex", "svg": "image/svg+xml",
            "json": "application/json", "javascript": "application/javascript"}.get(kind, "image/" + kind)
    return lambda *objects, **options: [display({mime: o}, raw=True) for o in objects]


def stand_in(name):
    from importlib.machinery import ModuleSpec

    return ModuleSpec(name, StandIn(), is_package=name == "IPython")


class Rich:
    """A value with one representation."""

    mime = "text/plain"

    def __init__(self, data=None, url=None, filename=None, metadata=None, **options):
        if filename is not None:
            with open(filename, "rb") as f:
                data = f.read()
                if not self.mime.startswith("image/p") and self.mime != "image/jpeg":
                    data = data.decode("utf-8", "replace")
        elif url is not None and data is None:
            from urllib.request import urlopen

            with urlopen(url) as answer:
                data = answer.read()
        self.data = data

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {self.mime: self.data, "text/plain": repr(self)}

    def __repr__(self):
        return "<%s object>" % type(self).__name__


class HTML(Rich):
    mime = "text/html"

    def _repr_html_(self):
        return self.data


class Markdown(Rich):
    mime = "text/markdown"


class Latex(Rich):
    mime = "text/latex"


class Math(Rich):
    mime = "text/latex"

    def __init__(self, data=None, **options):
        super().__init__("$\\displaystyle %s$" % str(data).strip("$"), **options)


class SVG(Rich):
    mime = "image/svg+xml"


class JSON(Rich):
    mime = "application/json"


class Javascript(Rich):
    mime = "application/javascript"


class Pretty(Rich):
    def __repr__(self):
        return str(self.data)


class Code(Rich):
    def __init__(self, data=None, language=None, **options):
        super().__init__(data, **options)
        self.language = language

    def __repr__(self):
        return str(self.data)


class Image(Rich):
    def __init__(self, data=None, url=None, filename=None, format=None, embed=None, width=None, height=None, **options):
        if isinstance(data, str) and not data.startswith(("http://", "https://")):
            data, filename = None, data
        elif isinstance(data, str):
            data, url = None, data
        self.mime = "image/png"
        super().__init__(data, url, filename)
        head = bytes(self.data[:4]) if self.data else b""
        if head[:2] == b"\xff\xd8" or format in ("jpg", "jpeg"):
            self.mime = "image/jpeg"
        elif head[:4] == b"GIF8" or format == "gif":
            self.mime = "image/gif"
        elif head[:4] == b"RIFF" or format == "webp":
            self.mime = "image/webp"


# ---- errors ----


def describe(error):
    """What a report says of an exception."""
    import traceback

    chain = traceback.TracebackException(type(error), error, error.__traceback__, limit=-MAX_FRAMES if too_deep(error) else None)
    prune(chain, set())
    lines = "".join(chain.format()).rstrip("\n").split("\n")
    if isinstance(error, KeyboardInterrupt) and not str(error):
        value = "the code was interrupted"
    else:
        try:
            value = str(error)
        except Exception as other:
            value = "<str() of the exception failed: %s>" % type(other).__name__
    return {"ename": type(error).__name__, "evalue": value, "traceback": lines}


def too_deep(error):
    depth, tb = 0, error.__traceback__
    while tb is not None and depth <= MAX_FRAMES:
        depth, tb = depth + 1, tb.tb_next
    return depth > MAX_FRAMES


def prune(chain, seen):
    """Takes the driver's own frames out of a traceback and all that belong to
    it."""
    if chain is None or id(chain) in seen:
        return
    seen.add(id(chain))
    stack = getattr(chain, "stack", None)
    if stack is not None:
        stack[:] = [f for f in stack if not f.filename.startswith("<paddock ")]
    prune(chain.__cause__, seen)
    prune(chain.__context__, seen)
    for member in getattr(chain, "exceptions", None) or ():
        prune(member, seen)
