package server

import (
	"math"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// maxResource bounds the text of one amount.
const maxResource = 64

// maxCPU is more cores than any machine has; it keeps thousandths in range.
const maxCPU = 1_000_000

const resourceNames = "cpu, memory, pids, ephemeral-storage, gpu"

// resources decodes a map of amounts (OpenSandbox configuration).
func (d *decoder) resources(body *value, name string) sandbox.Limits {
	var l sandbox.Limits
	for _, e := range d.entries(body, name, 16) {
		text := d.textOf(e.value, bytesRule{max: maxResource})
		if d.err != nil {
			return sandbox.Limits{}
		}
		var problem string
		switch e.name {
		case "cpu":
			l.CPUMillis, problem = parseCPU(text)
		case "memory":
			l.MemoryBytes, problem = parseBytes(text)
		case "ephemeral-storage":
			l.EphemeralBytes, problem = parseBytes(text)
		case "pids":
			l.PIDs, problem = parseCount(text, math.MaxInt32)
		case "gpu":
			l.GPUs, problem = parseGPUs(text)
		default:
			d.refuse(join(name, e.name), "is not a resource that this server knows. Allowed: %s.", resourceNames)
		}
		if problem != "" {
			d.refuse(name+"."+e.name, "is %s; %s", quote(text), problem)
		}
	}
	return l
}

// checkRequests is nil when nothing more is requested than allowed. What is
// requested has no other effect on one machine.
func (d *decoder) checkRequests(want, limit sandbox.Limits) {
	for _, r := range []struct {
		name        string
		want, limit int64
	}{
		{"cpu", want.CPUMillis, limit.CPUMillis},
		{"memory", want.MemoryBytes, limit.MemoryBytes},
		{"ephemeral-storage", want.EphemeralBytes, limit.EphemeralBytes},
		{"pids", want.PIDs, limit.PIDs},
	} {
		if r.limit > 0 && r.want > r.limit {
			d.refuse("resourceRequests."+r.name, "is more than resourceLimits.%s.", r.name)
		}
	}
}

const cpuForm = `it must be cores ("2", "0.5") or thousandths of one ("500m"), and more than 0.`

// parseCPU returns thousandths of a core.
func parseCPU(text string) (millis int64, problem string) {
	number, isMillis := strings.CutSuffix(text, "m")
	whole, fraction, hasFraction := strings.Cut(number, ".")
	if !digits(whole) || hasFraction && (isMillis || !digits(fraction)) {
		return 0, cpuForm
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, cpuForm
	}
	if !isMillis {
		f *= 1000
	}
	if f > maxCPU*1000 {
		return 0, "it must be at most " + strconv.Itoa(maxCPU) + " cores."
	}
	// Rounded to the nearest thousandth; less than half of one is none.
	if millis = int64(math.Round(f)); millis < 1 {
		return 0, `it must be at least "1m".`
	}
	return millis, ""
}

func digits(s string) bool {
	if s == "" || len(s) > 18 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

var byteUnits = map[string]int64{
	"": 1, "b": 1,
	"k": 1e3, "kb": 1e3, "ki": 1 << 10, "kib": 1 << 10,
	"m": 1e6, "mb": 1e6, "mi": 1 << 20, "mib": 1 << 20,
	"g": 1e9, "gb": 1e9, "gi": 1 << 30, "gib": 1 << 30,
	"t": 1e12, "tb": 1e12, "ti": 1 << 40, "tib": 1 << 40,
}

// parseBytes returns a number of bytes.
func parseBytes(text string) (n int64, problem string) {
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, known := byteUnits[strings.ToLower(text[len(number):])]
	switch {
	case strings.Contains(number, "."):
		return 0, `fractions are not allowed; use a smaller unit, such as "1536Mi" for one and a half Gi.`
	case !known || !digits(number):
		return 0, `it must be a whole number with an optional unit: k, m, g, t (of 1000) or Ki, Mi, Gi, Ti (of 1024).`
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return 0, "it is too large."
	}
	if n == 0 {
		return 0, "it must be more than 0."
	}
	return n * unit, ""
}

func parseCount(text string, high int64) (n int64, problem string) {
	n, err := strconv.ParseInt(text, 10, 64)
	if !digits(text) || err != nil || n < 1 || n > high {
		return 0, "it must be a whole number from 1 to " + strconv.FormatInt(high, 10) + "."
	}
	return n, ""
}

// parseGPUs returns the number in its plain form, or "all".
func parseGPUs(text string) (gpus, problem string) {
	if strings.EqualFold(text, "all") {
		return "all", ""
	}
	n, problem := parseCount(text, 1024)
	if problem != "" {
		return "", `it must be "all" or a whole number from 1 to 1024.`
	}
	return strconv.FormatInt(n, 10), ""
}
