package local

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// takeBackNull makes the host's /dev/null root's again. crun gave it to the root
// of sandboxes that an earlier paddock started with it as their standard input,
// and the owner of a device can close it to everybody.
func (e *Engine) takeBackNull() error {
	var st unix.Stat_t
	if err := unix.Stat(os.DevNull, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", os.DevNull, err)
	}
	if st.Uid < e.in.base(0) || st.Uid-e.in.base(0) >= 1<<28 {
		return nil
	}
	if err := unix.Chown(os.DevNull, 0, 0); err != nil {
		return fmt.Errorf("taking %s back from a sandbox: %w", os.DevNull, err)
	}
	if err := unix.Chmod(os.DevNull, 0o666); err != nil {
		return fmt.Errorf("taking %s back from a sandbox: %w", os.DevNull, err)
	}
	return nil
}
