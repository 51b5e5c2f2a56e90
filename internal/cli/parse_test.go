package cli

import (
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

func TestParseVolume(t *testing.T) {
	for in, want := range map[string]client.Volume{
		"data:/d":       {MountPath: "/d", PVC: &client.PVC{ClaimName: "data"}},
		"data:/d:ro":    {MountPath: "/d", PVC: &client.PVC{ClaimName: "data"}, ReadOnly: true},
		"/srv/x/:/d:rw": {MountPath: "/d", Host: &client.HostVolume{Path: "/srv/x"}},
	} {
		got, err := parseVolume(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got.MountPath != want.MountPath || got.ReadOnly != want.ReadOnly ||
			(got.PVC == nil) != (want.PVC == nil) || got.PVC != nil && *got.PVC != *want.PVC ||
			(got.Host == nil) != (want.Host == nil) || got.Host != nil && *got.Host != *want.Host {
			t.Errorf("%q: got %+v", in, got)
		}
	}
	for _, in := range []string{"", "x", ":/d", "x:", "x:rel", "./x:/d", "a/b:/d", "x:/d:rx", "x:/d:ro:y"} {
		if got, err := parseVolume(in); err == nil {
			t.Errorf("%q: got %+v, want an error", in, got)
		}
	}
}

func TestSplitPlace(t *testing.T) {
	for in, want := range map[string][2]string{
		"id:/a/b": {"id", "/a/b"}, "id:rel": {"id", "rel"}, "id:": {"id", "."}, "file": {"", "file"},
		"./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, "-": {"", "-"}, ":x": {"", ":x"}, "a/b:c": {"", "a/b:c"},
	} {
		if id, p := splitPlace(in); id != want[0] || p != want[1] {
			t.Errorf("splitPlace(%q) = %q, %q", in, id, p)
		}
	}
}

func TestSignalNumber(t *testing.T) {
	for in, want := range map[string]int{
		"signal 9 (SIGKILL)": 9, "signal: killed": 9, "The entrypoint was ended by SIGTERM.": 15,
		"signal: segmentation fault (core dumped)": 11, "signal: 15": 15,
	} {
		if got, ok := signalNumber(in); !ok || got != want {
			t.Errorf("signalNumber(%q) = %d, %v, want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "exit status 3", "signal 99", "SIGNIFICANT", "signal 0"} {
		if got, ok := signalNumber(in); ok {
			t.Errorf("signalNumber(%q) = %d", in, got)
		}
	}
}

func TestEntrypointEnd(t *testing.T) {
	for _, c := range []struct {
		status client.Status
		code   int
	}{
		{client.Status{State: "Terminated", Reason: "EXITED"}, 0},
		{client.Status{State: "Failed", Reason: "EXITED_ERROR", Message: "The entrypoint ended with exit code 7."}, 7},
		{client.Status{State: "Failed", Reason: "KILLED", Message: "signal 15 (SIGTERM)"}, 143},
		{client.Status{State: "Failed", Reason: "OUT_OF_MEMORY", Message: "memory"}, 137},
	} {
		err := entrypointEnd(&client.Sandbox{Status: c.status})
		exit, ok := err.(*ExitError)
		if c.code == 0 && err != nil || c.code != 0 && (!ok || exit.Code != c.code) {
			t.Errorf("%+v: %v, want exit code %d", c.status, err, c.code)
		}
	}
	if err := entrypointEnd(&client.Sandbox{Status: client.Status{State: "Failed", Reason: "EXECD_LOST"}}); err == nil {
		t.Error("a lost sandbox is a success")
	}
}

func TestCommandFailures(t *testing.T) {
	for value, want := range map[string]int{
		"exec: \"nope\": executable file not found in $PATH": 127,
		"fork/exec /x: no such file or directory":            127,
		"fork/exec /x: permission denied":                    126,
		"fork/exec /x: exec format error":                    126,
	} {
		err := commandFailed(&client.CommandError{Value: value})
		if exit, ok := err.(*ExitError); !ok || exit.Code != want {
			t.Errorf("%q: %v, want exit code %d", value, err, want)
		}
	}
	if exit, ok := commandFailed(client.ErrConnectionLost).(*ExitError); !ok || exit.Code != exitPaddock {
		t.Errorf("a lost connection: %v", exit)
	}
}

func TestImageNames(t *testing.T) {
	for in, want := range map[string]string{
		"python:3.11": "docker.io/library/python:3.11", "alpine": "docker.io/library/alpine:latest",
		"ghcr.io/a/b": "ghcr.io/a/b:latest", "docker.io/library/python:3.11": "docker.io/library/python:3.11",
		"localhost:5000/x:y": "localhost:5000/x:y", "NOT valid": "NOT valid",
	} {
		if got := normal(in); got != want {
			t.Errorf("normal(%q) = %q, want %q", in, got, want)
		}
	}
	if got := familiar("docker.io/library/python:3.11"); got != "python:3.11" {
		t.Errorf("familiar gives %q", got)
	}
}

func TestTimesAndSizes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	later := now.Add(90 * time.Second)
	for _, c := range [][2]string{
		{until(nil, now), "never"}, {until(&later, now), "in 1m30s"}, {until(&now, later), "now"},
		{ago(now, later), "1 minute ago"}, {ago(time.Time{}, now), "-"}, {bytesText(-1), "0 B"}, {bytesText(3 << 20), "3.0 MiB"},
		{shortDigest("sha256:0123456789abcdef"), "0123456789ab"}, {shortDigest("x"), "x"},
	} {
		if c[0] != c[1] {
			t.Errorf("got %q, want %q", c[0], c[1])
		}
	}
}

func TestCapture(t *testing.T) {
	for _, c := range []struct {
		writes      []string
		text, exact string
		more        bool
	}{
		{nil, "", "", false},
		{[]string{"ab", "cdef"}, "abcdef", "", false},
		{[]string{"abc", "defg", "h"}, "abcdef", "", true},
		{[]string{"abcdé", "x"}, "abcdé", "", true},
		{[]string{"abcdeé"}, "abcde", "", true},
		{[]string{"abcd\xf0\x9f\x92\x96"}, "abcd", "", true},
		{[]string{"\xff\x00"}, "\xff\x00", "\xff\x00", false},
		{[]string{"abcde\xff\xff"}, "abcde\xff", "abcde\xff", true},
	} {
		w := capture{limit: 6}
		for _, p := range c.writes {
			if n, err := w.Write([]byte(p)); n != len(p) || err != nil {
				t.Errorf("%q: %d, %v", p, n, err)
			}
		}
		if text, exact, more := w.result(); text != c.text || string(exact) != c.exact || more != c.more {
			t.Errorf("%q: %q, %q, %v", c.writes, text, exact, more)
		}
	}
}
