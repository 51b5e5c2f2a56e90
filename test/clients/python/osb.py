"""The command line of the official client, as the program that its users call."""

import json
import os
import subprocess
import sys
import tempfile
import traceback

import suite
from opensandbox_cli.main import cli

s = suite.Suite()
HOME = os.environ["HOME"]
os.environ["COLUMNS"] = "200"
box = {}


def osb(*args, code=0, stdin=b""):
    """Runs osb and returns what it printed; it must end with the code.

    The program is what the command osb is, in a copy of this process, which has
    its modules: starting Python anew would take most of the time.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            call(args)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    if status != code:
        raise suite.Failure(f"osb {' '.join(args)}: ended with {status}, want {code}\n{texts[0]}\n{texts[1]}")
    return "".join(texts) if code else texts[0]


def call(args):
    """Becomes osb; never returns."""
    status = 1
    try:
        os.chdir(HOME)
        sys.argv = ["osb", "--no-color", *args]
        cli()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def js(*args, **more):
    at = args.index("--") if "--" in args else len(args)
    return json.loads(osb(*args[:at], "-o", "json", *args[at:], **more))


def run(line):
    """Output of a line of shell in the sandbox."""
    return (osb("command", "run", box["id"], "--", "sh", "-c", line)).rstrip("\n")


@s.check("the program itself")
def _():
    program = os.path.join(os.path.dirname(sys.executable), "osb")
    suite.contains(subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout, "opensandbox", "version")


@s.check("sandbox create")
def _():
    made = js(
        "sandbox", "create", "-i", suite.IMAGE, "-t", "10m", "-e", "A=from create", "-m", "suite=clients", "-m", "by=osb",
        "--resource", "cpu=1", "--resource", "memory=512Mi", "--extension", "opensandbox.extensions.k=v",
        "--entrypoint", "sh", "--entrypoint", "-c", "--entrypoint", "echo entry; exec sleep 1000000",
    )  # fmt: skip
    box["id"] = made["id"]
    suite.equal(run("echo $A"), "from create", "environment")


@s.check("sandbox create -f")
def _():
    path = os.path.join(HOME, "request.json")
    with open(path, "w") as f:
        json.dump({"image": {"uri": suite.IMAGE}, "timeout": 300, "resourceLimits": {"memory": "256Mi"}, "metadata": suite.METADATA, "entrypoint": ["sleep", "1000000"]}, f)
    made = js("sandbox", "create", "-f", path)
    suite.equal((js("sandbox", "get", made["id"]))["entrypoint"], ["sleep", "1000000"], "entrypoint")
    osb("sandbox", "kill", made["id"])


@s.check("sandbox list, get, health, metrics, endpoint")
def _():
    listed = js("sandbox", "list", "-m", "by=osb", "-s", "running")
    suite.contains(json.dumps(listed), box["id"], "list")
    suite.true(box["id"] in osb("sandbox", "list", "-o", "yaml"), "yaml")
    osb("sandbox", "list")
    info = js("sandbox", "get", box["id"])
    suite.equal(info["metadata"]["by"], "osb", "metadata")
    suite.contains((osb("sandbox", "health", box["id"])).lower(), "health", "health")
    metrics = js("sandbox", "metrics", box["id"])
    suite.true(metrics["memory_total_in_mib"] <= 512, f"metrics {metrics}")
    endpoint = js("sandbox", "endpoint", box["id"], "-p", "8080")
    suite.contains(endpoint["endpoint"], box["id"], "endpoint")
    through = json.loads(osb("--use-server-proxy", "sandbox", "endpoint", box["id"], "-p", "8080", "-o", "json"))
    suite.contains(through["endpoint"], "/proxy/8080", "endpoint through the server")


@s.check("sandbox pause, resume, renew")
def _():
    osb("sandbox", "pause", box["id"])
    suite.equal((js("sandbox", "get", box["id"]))["status"]["state"], "Paused", "state")
    osb("sandbox", "resume", box["id"])
    suite.equal(run("echo back"), "back", "after resume")
    osb("sandbox", "renew", box["id"], "-t", "30m")


@s.check("command run: output, directory, exit code, argv, time-out")
def _():
    suite.equal(osb("command", "run", "-w", "/tmp", box["id"], "--", "pwd"), "/tmp\n", "directory")
    suite.equal(osb("command", "run", "--argv", box["id"], "--", "printf", "%s|", "$HOME", "", "a b"), "$HOME||a b|\n", "argv")
    # The client answers 1 for every failure of the command, and names its code.
    suite.contains(osb("command", "run", box["id"], "--", "sh", "-c", "exit 7", code=1), "7", "exit code")
    osb("command", "run", "-t", "1s", box["id"], "--", "sleep", "60", code=1)


@s.check("command run -d, status, logs, interrupt")
def _():
    started = js("command", "run", "-d", box["id"], "--", "sh", "-c", "echo begun; sleep 1000")
    id = started["execution_id"]
    suite.true((js("command", "status", box["id"], id))["running"], "running")
    logs = js("command", "logs", box["id"], id)
    suite.equal(logs["content"], "begun\n", "logs")
    again = js("command", "logs", "--cursor", str(logs["cursor"]), box["id"], id)
    suite.equal(again["content"], "", "logs from the cursor on")
    osb("command", "interrupt", box["id"], id)
    suite.true(not (js("command", "status", box["id"], id))["running"], "it ended")


@s.check("command session")
def _():
    made = js("command", "session", "create", "-w", "/var", box["id"])
    id = made["session_id"]
    # The client quotes every word.
    osb("command", "session", "run", box["id"], id, "--", "cd", "/etc")
    suite.equal(osb("command", "session", "run", box["id"], id, "--", "pwd"), "/etc\n", "directory")
    osb("command", "session", "delete", box["id"], id)


@s.check("file write, cat, upload, download, info, chmod, mv, search, replace, mkdir, rm, rmdir")
def _():
    id = box["id"]
    osb("file", "mkdir", id, "/tmp/f")
    osb("file", "write", id, "/tmp/f/a.txt", "-c", "alpha\nbeta\n", "--mode", "0640")
    suite.equal(osb("file", "cat", id, "/tmp/f/a.txt"), "alpha\nbeta\n", "cat")
    osb("file", "write", id, "/tmp/f/in.txt", stdin=b"from stdin")
    suite.equal(run("cat /tmp/f/in.txt"), "from stdin", "standard input")
    local, back = os.path.join(HOME, "up"), os.path.join(HOME, "down")
    data = bytes(range(256)) * 5000
    with open(local, "wb") as f:
        f.write(data)
    osb("file", "upload", id, local, "/tmp/f/up")
    osb("file", "download", id, "/tmp/f/up", back)
    with open(back, "rb") as f:
        suite.true(f.read() == data, "what went up came down")
    info = json.dumps(js("file", "info", id, "/tmp/f/a.txt"))
    suite.contains(info, "640", "mode")
    osb("file", "chmod", id, "/tmp/f/a.txt", "--mode", "0600")
    suite.equal(run("stat -c %a /tmp/f/a.txt"), "600", "mode")
    osb("file", "mv", id, "/tmp/f/a.txt", "/tmp/f/b.txt")
    suite.contains(json.dumps(js("file", "search", id, "/tmp/f", "-p", "b*")), "/tmp/f/b.txt", "search")
    osb("file", "replace", id, "/tmp/f/b.txt", "--old", "beta", "--new", "gamma")
    suite.equal(osb("file", "cat", id, "/tmp/f/b.txt"), "alpha\ngamma\n", "replaced")
    osb("file", "rm", id, "/tmp/f/b.txt")
    suite.contains((osb("file", "cat", id, "/tmp/f/b.txt", code=1)).lower(), "no such file", "a removed file")
    osb("file", "rmdir", id, "/tmp/f")
    suite.equal(run("test -e /tmp/f || echo gone"), "gone", "directory")


@s.check("diagnostics and devops")
def _():
    suite.contains(osb("diagnostics", "logs", box["id"], "-s", "container"), "entry", "logs")
    events = js("diagnostics", "events", box["id"], "-s", "runtime")
    suite.true(events["content"], "events")
    for name in ("logs", "events", "inspect", "summary"):
        suite.true((osb("devops", name, box["id"])).strip(), name)


@s.check("what the server does not have is refused with its code")
def _():
    for args, part in (
        (("snapshot", "list"), "501"),
        (("template", "list"), "FSB::API_NOT_SUPPORTED"),
    ):
        out = osb(*args, code=1)
        if "Traceback" in out:
            raise suite.Failure(out)
        suite.contains(out, part, " ".join(args))


@s.check("errors: a sandbox that is not there, a wrong key, no server")
def _():
    suite.contains((osb("sandbox", "get", "no-such", code=1)).lower(), "not found", "get")
    suite.contains(osb("--api-key", "wrong", "sandbox", "list", code=1), "INVALID_API_KEY", "list")
    osb("--domain", "127.0.0.1:1", "--request-timeout", "2", "sandbox", "list", code=1)


@s.check("configuration file")
def _():
    path = os.path.join(HOME, "config.toml")
    osb("--config", path, "config", "init")
    osb("--config", path, "config", "set", "connection.domain", suite.DOMAIN)
    osb("--config", path, "config", "set", "defaults.image", suite.IMAGE)
    suite.contains(osb("--config", path, "config", "show"), suite.DOMAIN, "show")
    made = json.loads(osb("--config", path, "sandbox", "create", "-m", "suite=clients", "-t", "2m", "-o", "json"))
    osb("--config", path, "sandbox", "kill", made["id"])


@s.check("sandbox kill")
def _():
    osb("sandbox", "kill", box["id"])
    suite.contains((osb("sandbox", "get", box["id"], code=1)).lower(), "not found", "get")


s.run_sync()
