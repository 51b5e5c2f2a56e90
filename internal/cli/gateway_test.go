package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/gateway/address"
)

// The key of the gateway is made once, for its owner's eyes, and a broken one is
// not replaced in silence.
func TestGatewayKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), gatewayKeyFile)
	first, err := gatewaySecret(path)
	if err != nil || len(first) < address.MinSecret {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again, err := gatewaySecret(path); err != nil || !bytes.Equal(first, again) {
		t.Errorf("another key was read back: %v", err)
	}
	other, err := gatewaySecret(filepath.Join(t.TempDir(), gatewayKeyFile))
	if err != nil || bytes.Equal(first, other) {
		t.Errorf("two servers have one key: %v", err)
	}
	for _, text := range []string{"", "zz", "abcd\n", "not hexadecimal"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := gatewaySecret(path); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// The first of the configured keys signs; all of them, and the server's own,
// verify.
func TestIngressOptions(t *testing.T) {
	cfg := &config.Loaded{Config: config.Default()}
	cfg.Storage.DataDir = t.TempDir()
	own, err := ingressOptions(cfg, 0)
	if err != nil || own.Keys.Short() {
		t.Fatalf("%+v, %v", own, err)
	}
	cfg.Gateway.SigningKeys = []string{"b=c2VjcmV0", "a=a2V5"}
	cfg.Gateway.Mode, cfg.Gateway.BaseDomain = "wildcard", "apps.example.com"
	in, err := ingressOptions(cfg, 28888)
	if err != nil || !in.Keys.Short() || in.Port != 28888 || in.Mode != "wildcard" || in.BaseDomain != "apps.example.com" {
		t.Fatalf("%+v, %v", in, err)
	}
	const until = 1999999999
	sig := in.Keys.Sign("sb", 80, until)
	now := time.Unix(1, 0)
	if sig[len(sig)-1] != 'b' || !in.Keys.Verify(address.Ref{ID: "sb", Port: 80, Expires: address.FormatExpires(until), Signature: sig}, now) {
		t.Errorf("signature %q", sig)
	}
	if sig := own.Keys.Sign("sb", 80, until); !in.Keys.Verify(address.Ref{ID: "sb", Port: 80, Expires: address.FormatExpires(until), Signature: sig}, now) {
		t.Error("addresses with the server's own signature are void once there are other keys")
	}
}
