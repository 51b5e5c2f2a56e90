package execd

import (
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
)

// A run sees exactly the variables that it was given, and the next one does not.
func TestLentVariables(t *testing.T) {
	name := rapid.SampledFrom([]string{"A", "B_1", "not-a-name", "1X"})
	value := rapid.SampledFrom([]string{"", "plain", "two words", "it's", "$(exit)", "a\nb", `\`, `"`})
	rapid.Check(t, func(t *rapid.T) {
		own := &isolatedSession{}
		script := []string{"export A=own"}
		want := []string{}
		for range rapid.IntRange(1, 4).Draw(t, "runs") {
			env := rapid.MapOfN(name, value, 0, 3).Draw(t, "envs")
			script = append(script, own.text(&isolated.RunRequest{Code: `printf '%s|%s;' "${A-unset}" "${B_1-unset}"`, Envs: env}))
			a, b := "own", "unset"
			if v, ok := env["A"]; ok {
				a = v
			}
			if v, ok := env["B_1"]; ok {
				b = v
			}
			want = append(want, a+"|"+b+";")
		}
		out, err := exec.Command("sh", "-c", strings.Join(script, "\n")).Output()
		if err != nil || string(out) != strings.Join(want, "") {
			t.Fatalf("got %q (%v), want %q from\n%s", out, err, strings.Join(want, ""), strings.Join(script, "\n"))
		}
	})
}
