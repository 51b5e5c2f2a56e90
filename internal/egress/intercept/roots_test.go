package intercept

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadRoots(t *testing.T) {
	a := authority(t)
	leaf, err := a.sign("x.example")
	if err != nil {
		t.Fatal(err)
	}
	good := string(a.PEM())
	other := "-----BEGIN CERTIFICATE-----\n"
	for name, x := range map[string]struct{ text, want string }{
		"one":         {good, ""},
		"two":         {"# mine\n" + good + "# and again\n" + good, ""},
		"empty":       {"", "holds no certificate"},
		"no PEM":      {"hello", "holds no certificate"},
		"key":         {good + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", `block 2 of`},
		"damaged":     {other + "AAAA\n-----END CERTIFICATE-----\n", "certificate 1 of"},
		"cut":         {good + other + "MIIB", "is damaged"},
		"no CA":       {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.cert.Certificate[0]})), "is not that of an authority"},
		"no end":      {strings.Repeat("#", maxRoots+1), "is longer than"},
		"another end": {good + "and nothing more", ""},
	} {
		path := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(path, []byte(x.text), 0o600); err != nil {
			t.Fatal(err)
		}
		pool, err := LoadRoots(path)
		if x.want == "" && (err != nil || pool == nil) || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := LoadRoots("/nowhere"); err == nil {
		t.Error("a file that is not there was read")
	}
}
