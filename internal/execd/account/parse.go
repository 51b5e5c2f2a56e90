package account

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"
)

const (
	// maxFile bounds what is read of a file, in bytes.
	maxFile = 16 << 20
	// maxLine bounds one line; /etc/group lines of large sites are long.
	maxLine = 1 << 20
	// maxGroups is NGROUPS_MAX of Linux (limits.h).
	maxGroups = 65536
)

// User is one line of /etc/passwd.
type User struct {
	Name string
	UID  uint32
	GID  uint32
	Home string
}

// Group is one line of /etc/group.
type Group struct {
	Name    string
	GID     uint32
	Members []string
}

// parseUsers calls f for each user until f returns false.
func parseUsers(r io.Reader, f func(User) bool) error {
	return lines(r, func(line string) bool {
		// name:password:uid:gid:comment:home:shell (passwd(5))
		v := strings.SplitN(line, ":", 7)
		if len(v) < 4 || v[0] == "" {
			return true
		}
		uid, ok1 := ID(v[2])
		gid, ok2 := ID(v[3])
		if !ok1 || !ok2 {
			return true
		}
		u := User{Name: v[0], UID: uid, GID: gid}
		if len(v) > 5 {
			u.Home = v[5]
		}
		return f(u)
	})
}

// parseGroups calls f for each group until f returns false.
func parseGroups(r io.Reader, f func(Group) bool) error {
	return lines(r, func(line string) bool {
		// name:password:gid:member,member (group(5))
		v := strings.SplitN(line, ":", 5)
		if len(v) < 3 || v[0] == "" {
			return true
		}
		gid, ok := ID(v[2])
		if !ok {
			return true
		}
		g := Group{Name: v[0], GID: gid}
		if len(v) > 3 && v[3] != "" {
			g.Members = strings.Split(v[3], ",")
		}
		return f(g)
	})
}

// lines calls f for each line that is neither empty, a comment, nor too long.
func lines(r io.Reader, f func(string) bool) error {
	br := bufio.NewReaderSize(io.LimitReader(r, maxFile), 4096)
	var long []byte
	tooLong := false
	for {
		part, more, err := br.ReadLine()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		tooLong = tooLong || len(long)+len(part) > maxLine
		if !tooLong {
			long = append(long, part...)
		}
		if more {
			continue
		}
		line := strings.TrimSpace(string(long))
		skip := tooLong || line == "" || line[0] == '#'
		long, tooLong = long[:0], false
		if !skip && !f(line) {
			return nil
		}
	}
}

// ID reads a numeric user or group id. The largest value means "leave
// unchanged" to the kernel (chown(2)) and is no id.
func ID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return 0, false
	}
	return uint32(n), true
}
