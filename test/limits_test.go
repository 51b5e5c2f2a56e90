package test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
)

func limited(t *testing.T, limits map[string]string) *client.Sandbox {
	t.Helper()
	return sharedServer(t).Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, ResourceLimits: limits})
}

// A command that takes too much memory dies; the sandbox and its neighbours do
// not.
func TestMemoryLimit(t *testing.T) {
	s := sharedServer(t)
	sb := limited(t, map[string]string{"memory": "64Mi"})
	if _, _, code := s.Shell(t, sb.ID, "tail /dev/zero"); code == 0 {
		t.Error("a command got memory without end")
	}
	s.Must(t, sb.ID, "echo alive")
	s.State(t, sb.ID, client.StateRunning)
}

// Files on a memory filesystem are memory too. No kill frees them, so the
// sandbox may end over them; then it says why.
func TestMemoryFilesystemIsLimited(t *testing.T) {
	s := sharedServer(t)
	sb := limited(t, map[string]string{"memory": "64Mi"})
	res, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "head -c 200000000 /dev/zero > /dev/shm/big"}, client.Output{})
	if err == nil && res.ExitCode == 0 {
		t.Error("/dev/shm took more than the limit")
	}
	if err == nil {
		s.Must(t, sb.ID, "rm -f /dev/shm/big; echo alive")
		return
	}
	if got := s.State(t, sb.ID, client.StateFailed); got.Status.Reason != "OUT_OF_MEMORY" {
		t.Errorf("%+v", got.Status)
	}
}

func TestForkBombIsContained(t *testing.T) {
	s := sharedServer(t)
	sb := limited(t, map[string]string{"pids": "64"})
	id, err := s.Client.Start(t.Context(), sb.ID, client.Command{Shell: `b() { b | b & }; b; sleep 2`})
	if err != nil {
		t.Fatal(err)
	}
	other := sleeper(t, s)
	if got := s.Must(t, other.ID, "echo alive"); got != "alive" {
		t.Errorf("the neighbour says %q", got)
	}
	_ = s.Client.Interrupt(t.Context(), sb.ID, id)
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Errorf("deleting a sandbox full of processes: %v", err)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

func TestPIDsLimit(t *testing.T) {
	s := sharedServer(t)
	sb := limited(t, map[string]string{"pids": "40"})
	if _, err := s.Client.Start(t.Context(), sb.ID, client.Command{Shell: `i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done; wait`}); err != nil {
		t.Fatal(err)
	}
	most := 0
	await(t, "the processes to start", func() bool {
		most = max(most, len(hostPIDs(t, sb.ID)))
		return most > 20
	})
	for range 20 {
		most = max(most, len(hostPIDs(t, sb.ID)))
	}
	if most > 40 {
		t.Errorf("%d processes run with a limit of 40", most)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
}

// The share of the CPU that a busy loop got, as the kernel has counted it.
func TestCPULimit(t *testing.T) {
	s := sharedServer(t)
	sb := limited(t, map[string]string{"cpu": "200m"})
	s.Must(t, sb.ID, `cat > /tmp/burn <<'END'
read up0 rest < /proc/uptime
i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done
read up1 rest < /proc/uptime
set -- $(cat /proc/self/stat) ; read a b c d e f g h i j k l m utime stime rest < /proc/$$/stat
echo $up0 $up1 $utime $stime
END
true`)
	var wall, cpu float64
	for range 5 {
		f := strings.Fields(s.Must(t, sb.ID, "sh /tmp/burn"))
		if len(f) != 4 {
			t.Fatalf("%q", f)
		}
		wall += number(t, f[1]) - number(t, f[0])
		cpu += (number(t, f[2]) + number(t, f[3])) / 100
	}
	// The kernel hands out the share in periods of 100 ms, so a short run may
	// exceed it by one.
	if cpu > 0.2*wall+0.3 {
		t.Errorf("it used %.2f s of CPU in %.2f s with a limit of 200m", cpu, wall)
	}
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
