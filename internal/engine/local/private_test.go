package local

import (
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// What the gateway refuses is what execd serves to this engine alone.
func TestPrivatePath(t *testing.T) {
	if sandbox.PrivatePath != hostapi.PathPrefix {
		t.Errorf("the gateway refuses %s, execd serves %s", sandbox.PrivatePath, hostapi.PathPrefix)
	}
}
