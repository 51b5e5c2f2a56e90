package execd_test

import (
	"context"
	"strings"
	"testing"
)

// strays start processes that leave the command's group in every way.
const strays = "sleep 7001 & setsid sleep 7001 & (setsid sh -c 'sleep 7001 &' &); sleep 0.2; echo up; "

// sleepers counts what is left of strays.
func sleepers(b *box) string {
	return strings.TrimSpace(b.sh("pgrep -cxf 'sleep 7001' || true"))
}

// A command that is ended from outside takes all that it started with it.
func TestEndedCommandsLeaveNothing(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	for name, end := range map[string]func(){
		"timeout": func() {
			if r := b.run(m{"command": strays + "sleep 1000", "timeout": 600}); r.code != "-1" {
				t.Errorf("timeout: exit %s", r.code)
			}
		},
		"interrupt": func() {
			r := b.run(m{"command": strays + "sleep 1000", "background": true})
			for b.sh("true"); ; {
				if _, logs := b.get("GET", "/command/"+r.id+"/logs", ""); logs == "up\n" {
					break
				}
			}
			if status, body := b.get("DELETE", "/command?id="+r.id, ""); status != 200 {
				t.Errorf("interrupt: %d %s", status, body)
			}
		},
		"client goes": func() {
			ctx, cancel := context.WithCancel(t.Context())
			req := b.request("POST", "/command", jsonOf(m{"command": strays + "sleep 1000"})).WithContext(ctx)
			resp, err := b.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			buf := make([]byte, 4096)
			for text := ""; !strings.Contains(text, `"up"`); {
				n, err := resp.Body.Read(buf)
				if text += string(buf[:n]); err != nil {
					t.Fatalf("%q: %v", text, err)
				}
			}
			cancel()
			for b.sh("pgrep -xf 'sleep 1000' || true") != "" {
			}
		},
	} {
		end()
		for range 2000 {
			if sleepers(b) == "0" {
				break
			}
		}
		if n := sleepers(b); n != "0" {
			t.Errorf("%s: %s processes are left", name, n)
		}
	}
	if r := b.run(m{"command": strays}); r.code != "0" || sleepers(b) != "3" {
		t.Errorf("a command that ends by itself: exit %s, %s daemons", r.code, sleepers(b))
	}
}
