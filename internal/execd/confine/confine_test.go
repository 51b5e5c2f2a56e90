package confine

import (
	"bytes"
	"testing"
)

func TestInstallRefuses(t *testing.T) {
	for _, size := range []int{0, 7, 9, instructionSize * (maxInstructions + 1)} {
		if err := InstallFrom(bytes.NewReader(make([]byte, size))); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
}
