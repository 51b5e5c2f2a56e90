package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"

	"golang.org/x/sys/unix"
)

// copyChunk is how much of a file is copied at a time, in bytes.
const copyChunk = 1 << 20

// tempName is that of a file which is not complete yet. It is next to its place,
// so that a rename puts it there in one step.
func tempName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails on Linux (crypto/rand)
	return ".paddock-commit-" + hex.EncodeToString(b[:])
}

// file replaces what has the entry's name in lower by a copy of the file.
func (c *committer) file(ctx context.Context, upper *upperDir, lower int, e *entry) error {
	// Not blocking, in case it has just become a FIFO.
	src, err := unix.Openat(upper.fd, e.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := unix.Fstat(src, &e.stat); err != nil {
		return err
	}
	if !e.is(unix.S_IFREG) {
		return errors.New("it was replaced meanwhile")
	}
	temp := tempName()
	dst, err := unix.Openat(lower, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	err = copyData(ctx, dst, src, e.stat.Size)
	if err == nil {
		err = copyXattrs(dst, src)
	}
	if err == nil {
		err = c.own(dst, e)
	}
	if err == nil {
		// Its time of change is what tools such as make look at.
		err = setTimes(dst, &e.stat)
	}
	return c.put(ctx, lower, temp, e.name, err)
}

func setTimes(fd int, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}

// symlink replaces what has the entry's name in lower by the same link. Nobody
// here follows it.
func (c *committer) symlink(ctx context.Context, upper *upperDir, lower int, e *entry) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(upper.fd, e.name, buf)
	if err != nil {
		return err
	}
	if n >= len(buf) {
		return unix.ENAMETOOLONG
	}
	temp := tempName()
	if err := unix.Symlinkat(string(buf[:n]), lower, temp); err != nil {
		return err
	}
	err = unix.Fchownat(lower, temp, int(e.stat.Uid+c.base), int(e.stat.Gid+c.base), unix.AT_SYMLINK_NOFOLLOW)
	return c.put(ctx, lower, temp, e.name, err)
}

// put moves a complete file to its place, or removes it when making it failed.
func (c *committer) put(ctx context.Context, dir int, temp, name string, err error) error {
	if err == nil {
		err = replace(dir, temp, name)
	}
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		// A directory was there before.
		if err = c.removed(ctx, dir, name); err == nil {
			err = replace(dir, temp, name)
		}
	}
	if err != nil {
		_ = unlink(dir, temp, 0) // err is what matters
	}
	return err
}

// copyData copies a file of that size. Its holes stay holes: what looks like a
// petabyte may be a few bytes.
func copyData(ctx context.Context, dst, src int, size int64) error {
	buf := make([]byte, copyChunk)
	for at := int64(0); at < size; {
		data, err := unix.Seek(src, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but a hole up to the end
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(src, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		// What is appended meanwhile is not part of it.
		if err := copyRange(ctx, dst, src, data, min(hole, size), buf); err != nil {
			return err
		}
		at = max(hole, at+1)
	}
	return unix.Ftruncate(dst, size)
}

func copyRange(ctx context.Context, dst, src int, from, to int64, buf []byte) error {
	for from < to {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), to-from)], from)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err // n is 0 when it was shortened meanwhile
		}
		for done := 0; done < n; {
			k, err := unix.Pwrite(dst, buf[done:n], from+int64(done))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			done += k
		}
		from += int64(n)
	}
	return nil
}
