package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needHost skips where such filesystems can't be made.
func needHost(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := Supported(); err != nil {
		t.Skip(err)
	}
}

// devices lists the loop devices that are bound to files beneath dir.
func devices(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			found = append(found, f+": "+strings.TrimSpace(string(b)))
		}
	}
	return found
}

// awaitFree waits until no loop device is bound to a file beneath dir: the
// kernel unmounts in the background.
func awaitFree(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		left := devices(t, dir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still bound: %v", left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func makeAndMount(t *testing.T, path string, size int64) (fd, loop int) {
	t.Helper()
	if err := Make(context.Background(), path, size); err != nil {
		t.Fatal(err)
	}
	fd, loop, err := Mount(path)
	if err != nil {
		t.Fatal(err)
	}
	return fd, loop
}

// fill writes to a new file in the directory until that fails.
func fill(dir string) (int64, error) {
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var total int64
	buf := make([]byte, 256<<10)
	for {
		n, err := f.Write(buf)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

func TestSizeIsLimit(t *testing.T) {
	needHost(t)
	for _, size := range []int64{MinBytes, MinBytes + 12345, 100 << 20} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			dir := t.TempDir()
			fd, _ := makeAndMount(t, filepath.Join(dir, "disk.img"), size)
			written, err := fill(fmt.Sprintf("/proc/self/fd/%d", fd))
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got error %v after %d bytes, want ENOSPC", err, written)
			}
			if written > size || written < size*15/16 {
				t.Errorf("%d bytes were written to a disk of %d", written, size)
			}
			unix.Close(fd)
			awaitFree(t, dir)
		})
	}
}

func TestFileIsSparse(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	fd, _ := makeAndMount(t, path, 1<<30)
	unix.Close(fd)
	awaitFree(t, dir)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 1<<20 {
		t.Errorf("an empty disk of 1 GiB takes %d bytes", used)
	}
}

func TestMountIsHidden(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	fd, loop := makeAndMount(t, filepath.Join(dir, "disk.img"), MinBytes)
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), fmt.Sprintf("/fd/%d ", fd)) || strings.Contains(string(b), fmt.Sprintf("loop%d ", loop)) {
		t.Errorf("the mount is in the host's namespace:\n%s", b)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		t.Fatal(err)
	}
	if st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_NOSUID == 0 {
		t.Errorf("the mount's flags are %#x, want nodev and nosuid among them", st.Flags)
	}
	unix.Close(fd)
	awaitFree(t, dir)
}

func TestParallelMounts(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	const n = 20
	fds := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			path := filepath.Join(dir, strconv.Itoa(i))
			err := Make(context.Background(), path, MinBytes)
			if err == nil {
				fds[i], _, err = Mount(path)
			}
			if err == nil {
				err = os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/mine", fds[i]), []byte(strconv.Itoa(i)), 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for i, fd := range fds {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/mine", fd))
		if err != nil || string(b) != strconv.Itoa(i) {
			t.Errorf("disk %d holds %q, %v", i, b, err)
		}
		unix.Close(fd)
	}
	awaitFree(t, dir)
}

func TestOwnNode(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	fd, loop := makeAndMount(t, filepath.Join(dir, "disk.img"), MinBytes)
	dev, err := openOwnNode(loop)
	if err != nil {
		t.Fatal(err)
	}
	again, err := mount(dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/seen", again), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/seen", fd)); err != nil {
		t.Errorf("the node that was made is of another device: %v", err)
	}
	for _, fd := range []int{again, dev, fd} {
		unix.Close(fd)
	}
	awaitFree(t, dir)
}

func TestDiscard(t *testing.T) {
	needHost(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.img")
	fd, loop := makeAndMount(t, path, 64<<20)
	if _, err := fill(fmt.Sprintf("/proc/self/fd/%d", fd)); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := Discard(filepath.Join(dir, "another"), loop); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/fill", fd), []byte("x"), 0o600); err != nil {
		t.Errorf("stopped for the name of another file: %v", err)
	}
	if err := Discard(path, loop); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/more", fd), []byte("x"), 0o600); !errors.Is(err, unix.EIO) {
		t.Errorf("writing to a stopped filesystem: got %v, want EIO", err)
	}
	if err := Discard(path, loop); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
	unix.Close(fd)
	awaitFree(t, dir)
	if err := Discard(path, loop); err != nil {
		t.Errorf("stopping what is not mounted: %v", err)
	}
	if err := Discard(path, 1<<19); err != nil {
		t.Errorf("a device that does not exist: %v", err)
	}
}

func TestMakeRefuses(t *testing.T) {
	needHost(t)
	ctx := context.Background()
	dir := t.TempDir()
	if err := Make(ctx, filepath.Join(dir, "small"), MinBytes-1); err == nil {
		t.Error("a disk below the minimum was made")
	}
	exists := filepath.Join(dir, "exists")
	if err := os.WriteFile(exists, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Make(ctx, exists, MinBytes); !errors.Is(err, os.ErrExist) {
		t.Errorf("making a disk over a file: got %v", err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := Make(over, filepath.Join(dir, "over"), MinBytes); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: got %v", err)
	}
	if _, _, err := Mount(exists); err == nil {
		t.Error("a file without a filesystem was mounted")
	}
	if _, _, err := Mount(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mounting a missing file: got %v", err)
	}
	awaitFree(t, dir)
}

// TestKilledAtEachStep kills a process with SIGKILL in the middle: the kernel
// has to free what it held.
func TestKilledAtEachStep(t *testing.T) {
	needHost(t)
	if path := os.Getenv("PADDOCK_TEST_DISK"); path != "" {
		dieAt(t, path, os.Getenv("PADDOCK_TEST_STEP"))
	}
	for _, step := range []string{"made", "attached", "mounted", "written", "discarded"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAtEachStep$")
			cmd.Env = append(os.Environ(), "PADDOCK_TEST_DISK="+filepath.Join(dir, "disk.img"), "PADDOCK_TEST_STEP="+step)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ok || !ws.Signaled() {
				t.Fatalf("the process was not killed: %v\n%s", err, out)
			}
			awaitFree(t, dir)
		})
	}
}

func dieAt(t *testing.T, path, step string) {
	die := func(at string) {
		if at == step {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	if err := Make(context.Background(), path, MinBytes); err != nil {
		t.Fatal(err)
	}
	die("made")
	image, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	dev, loop, err := attach(int(image.Fd()), "test")
	if err != nil {
		t.Fatal(err)
	}
	die("attached")
	fd, err := mount(dev)
	if err != nil {
		t.Fatal(err)
	}
	die("mounted")
	if _, err := fill(fmt.Sprintf("/proc/self/fd/%d", fd)); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	die("written")
	if err := Discard(path, loop); err != nil {
		t.Fatal(err)
	}
	die("discarded")
}
