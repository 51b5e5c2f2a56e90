package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Phases of a shell, in order.
const (
	phaseMaking   = "making"
	phaseShell    = "shell"
	phaseClaiming = "claiming"
	phaseClaimed  = "claimed"
)

// state is what a restarted server must know of a shell, in state.json of its
// run directory.
type state struct {
	ID    string `json:"id"`
	Index int    `json:"index"`
	Phase string `json:"phase"`
	// PID and PIDStart (clock ticks since boot) identify execd.
	PID      int    `json:"pid,omitempty"`
	PIDStart uint64 `json:"pidStart,omitempty"`
	// Image is the digest that is held, from phaseClaiming on.
	Image string `json:"image,omitempty"`
	// Loop is the number of the loop device that had the sandbox's limited
	// disk when it was made.
	Loop *int `json:"loop,omitempty"`
	// Trust says how the sandbox's programs were told to trust the authority;
	// empty when they were not.
	Trust string `json:"trust,omitempty"`
	// Isolation is empty for a container.
	Isolation sandbox.Isolation `json:"isolation,omitempty"`
	// GPUs are the names of the GPUs that the sandbox has.
	GPUs []string `json:"gpus,omitempty"`
}

// stateSize is the size of state.json, in bytes: every state is padded to it,
// so that writing one over another is a single write of one page, which a
// killed process has done wholly or not at all. A new name and a rename would
// cost ten times as much, on the path of every create.
const stateSize = 4096

func (in *instance) saveState(s *state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(b) > stateSize {
		return fmt.Errorf("the state of %s has %d bytes, more than %d", s.ID, len(b), stateSize)
	}
	b = append(b, bytes.Repeat([]byte{' '}, stateSize-len(b))...)
	f, err := os.OpenFile(filepath.Join(in.run(s.ID), "state.json"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}

func (in *instance) loadState(id string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(in.run(id), "state.json"))
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("reading the state of %s: %w", id, err)
	}
	if s.ID != id || s.Index < 0 || s.Index >= maxIndex {
		return nil, fmt.Errorf("reading the state of %s: it does not fit", id)
	}
	return s, nil
}

// writeFile replaces a file in one step, so that a reader or a restarted
// process never sees half of it.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// processStart returns the start time of a process in clock ticks since boot
// (field 22 of /proc/pid/stat, proc(5)): with the pid it names one process for
// the life of the machine.
func processStart(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The command name may hold anything; fields begin after its last ")".
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, errors.New("unexpected form of /proc/pid/stat")
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// openProcess returns a pidfd of the process if it is still the one that
// started then.
func openProcess(pid int, start uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	got, err := processStart(pid)
	if err == nil && start != 0 && got != start {
		err = unix.ESRCH
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
