package seccomp

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/confine"
)

// filteredEnv makes the test binary install the filter and become the program
// that its arguments name.
const filteredEnv = "PADDOCK_SECCOMP_TEST_RUN_FILTERED"

func TestMain(m *testing.M) {
	if os.Getenv(filteredEnv) != "" {
		if err := becomeFiltered(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(125)
		}
	}
	os.Exit(m.Run())
}

func becomeFiltered(args []string) error {
	program, err := Compile()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	if err := os.Unsetenv(filteredEnv); err != nil {
		return err
	}
	if err := confine.Install(program); err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}

// What people run in sandboxes has to work under the filter.
func TestWorkloads(t *testing.T) {
	tests := []struct {
		name   string
		needs  []string // programs without which the case is skipped
		files  map[string]string
		script string
		asUser bool // not root: the program refuses to run as root
	}{
		{
			name: "shell",
			script: `set -e
				echo hello | tr a-z A-Z | grep -q HELLO
				mkdir d; echo x > d/f; ln -s f d/l; cp -a d e; mv e g; chmod 600 g/f; touch -d @0 g/f
				( sleep 0.01 & wait )
				tar cf t.tar d g; tar tf t.tar > /dev/null; rm -r d g
				grep -q "^Seccomp:.2" /proc/self/status`,
		},
		{
			name:  "python",
			needs: []string{"python3"},
			files: map[string]string{"w.py": pythonWorkload},
			script: `python3 w.py && python3 -m venv --without-pip v &&
				v/bin/python -c 'import json, sqlite3, ssl, hashlib; sqlite3.connect("x.db").execute("create table t(a)")'`,
		},
		{
			name:   "node",
			needs:  []string{"node"},
			files:  map[string]string{"w.js": nodeWorkload},
			script: `node w.js`,
		},
		{
			name:  "git",
			needs: []string{"git"},
			script: `set -e
				export HOME="$PWD" GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
				git init -q r; echo x > r/f; git -C r add f; git -C r commit -q -m m
				git clone -q r c; git -C c gc -q; git -C c log --oneline | grep -q m`,
		},
		{
			name:   "java",
			needs:  []string{"java", "javac"},
			files:  map[string]string{"W.java": javaWorkload},
			script: `javac -J-Xshare:auto -J-XX:TieredStopAtLevel=1 W.java && java -Xshare:auto -XX:TieredStopAtLevel=1 W`,
		},
		{
			name:   "postgres",
			needs:  []string{"initdb", "postgres"},
			asUser: true,
			script: `set -e
				initdb -D db --no-sync --auth=trust -U postgres > log 2>&1 || { cat log; exit 1; }
				mkdir s
				echo 'select 6*7;' | postgres --single -D db -c fsync=off postgres | grep -q 42`,
		},
		{
			name:  "packages",
			needs: []string{"apt-get", "dpkg-deb"},
			script: `set -e
				mkdir -p p/DEBIAN p/usr/share/x var
				printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: d\n' > p/DEBIAN/control
				dpkg-deb --build p x.deb > /dev/null
				mkdir -p root/var/lib/dpkg; touch root/var/lib/dpkg/status
				dpkg --root="$PWD/root" --force-not-root --force-script-chrootless --log=/dev/null -i x.deb > /dev/null
				apt-get --simulate --no-download install > /dev/null`,
		},
		{
			// The audit library gives up on errors that it doesn't know.
			name:  "useradd",
			needs: []string{"useradd"},
			script: `set -e
				mkdir -p root/etc
				echo 'root:x:0:0::/root:/bin/sh' > root/etc/passwd; echo 'root:*:1::::::' > root/etc/shadow
				echo 'root:x:0:' > root/etc/group; echo 'root:*::' > root/etc/gshadow
				useradd --prefix "$PWD/root" someone; grep -q someone root/etc/passwd`,
		},
		{
			name:  "debugger",
			needs: []string{"gdb"},
			script: `gdb -q -nx -batch -ex 'break exit' -ex run -ex continue --args /bin/true < /dev/null > log 2>&1;
				grep -q 'exited normally' log || { cat log; exit 1; }`,
		},
		{
			name:   "openssl",
			needs:  []string{"openssl"},
			script: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout k -out c 2> /dev/null && openssl x509 -in c -noout`,
		},
		{
			name:   "sockets",
			needs:  []string{"ss", "ip"},
			script: `ip -o addr show lo > /dev/null && ss -tln > /dev/null`,
		},
		{
			name:   "execution domain",
			needs:  []string{"setarch"},
			script: `setarch "$(uname -m)" -R true`,
		},
		{
			name:   "namespaces stay shut",
			needs:  []string{"unshare"},
			script: `! unshare --mount true 2> log && grep -qi "not permitted" log && ! unshare --user true 2> /dev/null`,
		},
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, program := range tt.needs {
				if _, err := exec.LookPath(program); err != nil {
					t.Skip("needs ", program)
				}
			}
			dir := t.TempDir()
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, self, "sh", "-c", tt.script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), filteredEnv+"=1", "PYTHONDONTWRITEBYTECODE=1")
			cmd.WaitDelay = time.Second
			if tt.asUser && os.Getuid() == 0 {
				runAsNobody(t, cmd)
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}

// runAsNobody makes the command run as an unprivileged user, in a folder and
// from a copy of the test binary that this user can reach.
func runAsNobody(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	const nobody = 65534
	dir, err := os.MkdirTemp("", "paddock-seccomp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "test")
	data, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Path, cmd.Dir = bin, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

const pythonWorkload = `
import asyncio, multiprocessing, os, signal, socket, subprocess, tempfile, threading, time

def child(q):
    q.put(os.getpid())

if __name__ == "__main__":
    assert subprocess.run(["echo", "x"], capture_output=True, check=True).stdout == b"x\n"
    t = threading.Thread(target=time.sleep, args=(0.01,)); t.start(); t.join()
    fork = multiprocessing.get_context("fork"); q = fork.Queue()
    p = fork.Process(target=child, args=(q,)); p.start(); assert q.get() == p.pid; p.join(); assert p.exitcode == 0
    a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
    s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); c.close(); s.close()
    async def main():
        p = await asyncio.create_subprocess_exec("true"); assert await p.wait() == 0
        await asyncio.to_thread(time.sleep, 0.01)
    asyncio.run(main())
    with tempfile.TemporaryDirectory() as d:
        os.symlink("x", d + "/l"); open(d + "/f", "w").write("x"); os.utime(d + "/f"); os.stat(d + "/f")
    os.memfd_create("x"); os.sched_getaffinity(0); os.getrandom(4); os.cpu_count()
    fd = os.pidfd_open(os.getpid()); os.close(fd)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for family in ("AF_PACKET", "AF_ALG", "AF_VSOCK"):
        if hasattr(socket, family):
            try:
                socket.socket(getattr(socket, family), socket.SOCK_RAW)
            except OSError:
                continue
            raise SystemExit(family + " is open")
`

const nodeWorkload = `
const assert = require('assert'), fs = require('fs'), http = require('http'), os = require('os')
const { execFileSync } = require('child_process'), { Worker } = require('worker_threads')
assert.equal(execFileSync('echo', ['x']).toString(), 'x\n')
fs.writeFileSync('f', 'x'); fs.copyFileSync('f', 'g'); fs.statSync('g'); fs.watch('.').close(); os.networkInterfaces()
new Worker('require("worker_threads").parentPort.postMessage(1)', { eval: true }).on('message', () => {
  const s = http.createServer((q, r) => r.end('ok')).listen(0, '127.0.0.1', async () => {
    const r = await fetch('http://127.0.0.1:' + s.address().port)
    assert.equal(await r.text(), 'ok')
    process.exit(0)
  })
})
`

const javaWorkload = `
import java.net.*;
import java.nio.file.*;

public class W {
    public static void main(String[] a) throws Exception {
        Files.writeString(Path.of("f"), "x");
        if (new ProcessBuilder("true").start().waitFor() != 0) throw new Exception("child");
        Thread t = new Thread(() -> {}); t.start(); t.join();
        try (ServerSocket s = new ServerSocket(0); Socket c = new Socket("localhost", s.getLocalPort())) {}
        System.gc();
    }
}
`
