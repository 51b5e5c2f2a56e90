package thread

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// init keeps the main goroutine, which is TestMain's, on the main thread.
func init() { runtime.LockOSThread() }

// fromMain is what run did when the scheduler had given it the main thread.
var fromMain = errors.New("not run")

func TestMain(m *testing.M) {
	done := make(chan error, 1)
	run(notOnMain, done)
	fromMain = <-done
	// Tests run in other goroutines, which may get the main thread too now.
	runtime.UnlockOSThread()
	os.Exit(m.Run())
}

func notOnMain() error {
	if OnMain() {
		return errors.New("on the main thread")
	}
	return nil
}

func TestRun(t *testing.T) {
	want := errors.New("of f")
	if err := Run(func() error { return want }); err != want {
		t.Errorf("error %v, want that of f", err)
	}
	for range 500 {
		if err := Run(notOnMain); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunFromMain(t *testing.T) {
	if fromMain != nil {
		t.Error(fromMain)
	}
}

func TestThreadEnds(t *testing.T) {
	var tid int
	if err := Run(func() error { tid = unix.Gettid(); return nil }); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid))
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the thread %d still exists", tid)
		}
		time.Sleep(time.Millisecond)
	}
}
