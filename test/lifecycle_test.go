package test

import (
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

func TestListFiltersAndPages(t *testing.T) {
	s := sharedServer(t)
	var ids []string
	for i := range 5 {
		sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever,
			Metadata: map[string]string{"list-test": "yes", "n": strconv.Itoa(i % 2)}})
		ids = append(ids, sb.ID)
	}
	mine := map[string]string{"list-test": "yes"}
	var got []string
	for page := 1; ; page++ {
		p, err := s.Client.List(t.Context(), client.ListOptions{Metadata: mine, Page: page, PageSize: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, sb := range p.Items {
			got = append(got, sb.ID)
		}
		if p.Pagination.TotalItems != 5 || p.Pagination.TotalPages != 3 || p.Pagination.HasNextPage != (page < 3) {
			t.Errorf("page %d: %+v", page, p.Pagination)
		}
		if !p.Pagination.HasNextPage {
			break
		}
	}
	for i, id := range got {
		if want := ids[len(ids)-1-i]; id != want {
			t.Errorf("item %d is %s, want %s: newest first", i, id, want)
		}
	}
	count := func(query string) int {
		var page struct{ Pagination struct{ TotalItems int } }
		r := s.Do(t, http.MethodGet, "/v1/sandboxes?"+query, nil)
		if r.Status != http.StatusOK {
			t.Fatalf("%s: %d %s", query, r.Status, r.Body)
		}
		r.JSON(t, &page)
		return page.Pagination.TotalItems
	}
	meta := func(s string) string { return "metadata=" + url.QueryEscape(s) }
	for query, want := range map[string]int{
		meta("list-test=yes&n=1"): 2, meta("list-test=yes") + "&state=running": 5, meta("list-test=yes") + "&state=PAUSED&state=Running": 5,
		meta("list-test=yes") + "&state=Paused": 0, meta("list-test=no"): 0, meta("list-test=yes") + "&page=99": 5,
	} {
		if got := count(query); got != want {
			t.Errorf("%s: %d items, want %d", query, got, want)
		}
	}
	for _, query := range []string{"metadata=x", "page=0", "pageSize=0", "pageSize=201", "page=x"} {
		r := s.Do(t, http.MethodGet, "/v1/sandboxes?"+query, nil)
		if r.Status != http.StatusBadRequest {
			t.Errorf("%s: %d, want 400", query, r.Status)
		}
		r.Error(t)
	}
}

func TestMetadataPatchesAreNotLost(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Metadata: map[string]string{"keep": "1", "drop": "1"}})
	patched, err := s.Client.PatchMetadata(t.Context(), sb.ID, map[string]*string{"drop": nil, "unknown": nil, "new": new("2")})
	if err != nil {
		t.Fatal(err)
	}
	if m := patched.Metadata; m["keep"] != "1" || m["new"] != "2" || len(m) != 2 {
		t.Errorf("metadata %v", m)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Client.PatchMetadata(t.Context(), sb.ID, map[string]*string{"k" + strconv.Itoa(i): new("v")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := s.Client.Get(t.Context(), sb.ID)
	if err != nil || len(got.Metadata) != 22 {
		t.Errorf("%d keys after 20 patches at once, want 22: %v", len(got.Metadata), err)
	}
	for body, want := range map[string]string{
		`{"opensandbox.io/x":"1"}`:  "INVALID_METADATA_LABEL",
		`{"opensandbox.io/x":null}`: "INVALID_METADATA_LABEL",
		`{"bad key":"1"}`:           "SANDBOX::INVALID_METADATA_LABEL",
	} {
		r := s.Do(t, http.MethodPatch, "/v1/sandboxes/"+sb.ID+"/metadata", body)
		if code, _ := r.Error(t); r.Status != http.StatusBadRequest || code != want {
			t.Errorf("%s: %d %s, want 400 %s", body, r.Status, code, want)
		}
	}
}

func TestRenew(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Timeout: 10 * time.Minute})
	for _, d := range []time.Duration{time.Hour, 2 * time.Minute} {
		want := time.Now().Add(d).Truncate(time.Second)
		at, err := s.Client.Renew(t.Context(), sb.ID, want)
		if err != nil || !at.Equal(want) {
			t.Fatalf("renewed to %s, %v; want %s", at, err, want)
		}
		got, err := s.Client.Get(t.Context(), sb.ID)
		if err != nil || got.ExpiresAt == nil || !got.ExpiresAt.Equal(want) {
			t.Errorf("expiresAt %v, %v; want %s", got.ExpiresAt, err, want)
		}
	}
	if _, err := s.Client.Renew(t.Context(), sb.ID, time.Now().Add(-time.Second)); !client.IsInvalid(err) {
		t.Errorf("into the past: %v, want 400", err)
	}
	var never sandboxJSON
	body := createBody(busyboxImage)
	delete(body, "timeout")
	s.Do(t, http.MethodPost, "/v1/sandboxes", body).JSON(t, &never)
	s.Forget(t, never.ID)
	if never.ExpiresAt != nil {
		t.Errorf("without a timeout it expires at %s", never.ExpiresAt)
	}
	if _, err := s.Client.Renew(t.Context(), never.ID, time.Now().Add(time.Hour)); !client.IsConflict(err) {
		t.Errorf("renewing one that never expires: %v, want 409", err)
	}
}

func TestExpiryAlsoWhilePaused(t *testing.T) {
	s := sharedServer(t)
	running, paused := sleeper(t, s), sleeper(t, s)
	if err := s.Client.Pause(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{running.ID, paused.ID} {
		if _, err := s.Client.Renew(t.Context(), id, time.Now().Add(1500*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{running.ID, paused.ID} {
		if err := s.Gone(t, id, 20*time.Second); !strings.Contains(err.Error(), "expired") {
			t.Errorf("the error does not say that it expired: %v", err)
		}
	}
	for _, trace := range s.AwaitNoTraces(running.ID, paused.ID) {
		t.Errorf("left after the expiry: %s", trace)
	}
}

func TestPauseStopsAndResumeGoesOn(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage,
		Entrypoint: []string{"sh", "-c", `i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done`}})
	lines := func() int { return strings.Count(logs(t, s, sb.ID), "\n") }
	await(t, "the counter to count", func() bool { return lines() > 3 })
	if err := s.Client.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	s.State(t, sb.ID, client.StatePaused)
	before := lines()
	time.Sleep(200 * time.Millisecond) // ten counts' time in which none may come
	if after := lines(); after != before {
		t.Errorf("it counted from %d to %d while paused", before, after)
	}
	if err := s.Client.Pause(t.Context(), sb.ID); !client.IsConflict(err) {
		t.Errorf("pausing a paused one: %v, want 409", err)
	}
	_, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "true"}, client.Output{})
	if !client.IsConflict(err) || !strings.Contains(err.Error(), "paused") && !strings.Contains(err.Error(), "Paused") {
		t.Errorf("a command in a paused sandbox: %v, want 409 that says that it is paused", err)
	}
	if err := s.Client.Resume(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	s.State(t, sb.ID, client.StateRunning)
	await(t, "the counter to go on", func() bool { return lines() > before })
	if err := s.Client.Resume(t.Context(), sb.ID); !client.IsConflict(err) {
		t.Errorf("resuming a running one: %v, want 409", err)
	}
	for range 10 {
		if err := s.Client.Pause(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Client.Resume(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Must(t, sb.ID, "echo alive"); got != "alive" {
		t.Errorf("after ten cycles it answers %q", got)
	}
	// A paused one can be deleted.
	if err := s.Client.Pause(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestDeleteTwiceAndAtOnce(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	if r := s.Do(t, http.MethodDelete, "/v1/sandboxes/"+sb.ID, nil); r.Status != http.StatusNoContent {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	r := s.Do(t, http.MethodDelete, "/v1/sandboxes/"+sb.ID, nil)
	if code, _ := r.Error(t); r.Status != http.StatusNotFound || !strings.HasSuffix(code, "SANDBOX_NOT_FOUND") {
		t.Errorf("second delete: %d %s", r.Status, code)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
	for _, path := range []string{"", "/endpoints/80", "/logs", "/proxy/80/"} {
		if r := s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+path, nil); r.Status != http.StatusNotFound {
			t.Errorf("GET %q of a deleted sandbox: %d", path, r.Status)
		}
	}
	sb = sleeper(t, s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Client.Delete(t.Context(), sb.ID); err != nil && !client.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.Client.Get(t.Context(), sb.ID); !client.IsNotFound(err) {
		t.Errorf("after eight deletes: %v", err)
	}
}

func TestHowEntrypointsEnd(t *testing.T) {
	s := sharedServer(t)
	cases := map[string]struct {
		entrypoint []string
		memory     string
		state      string
		reason     string
		message    string
	}{
		"exit 0":         {[]string{"sh", "-c", "echo last words; exit 0"}, "", client.StateTerminated, "EXITED", ""},
		"exit 3":         {[]string{"sh", "-c", "echo last words; exit 3"}, "", client.StateFailed, "EXITED_ERROR", "3"},
		"signal":         {[]string{"sh", "-c", "echo last words; kill -15 $$; sleep 9"}, "", client.StateFailed, "KILLED", "SIGTERM"},
		"out of memory":  {[]string{"sh", "-c", "echo last words; exec tail /dev/zero"}, "32Mi", client.StateFailed, "OUT_OF_MEMORY", "memory"},
		"not found":      {[]string{"/no/such/program"}, "", client.StateFailed, "ENTRYPOINT_FAILED", "/no/such/program"},
		"not executable": {[]string{"/etc/passwd"}, "", client.StateFailed, "ENTRYPOINT_FAILED", "/etc/passwd"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := client.CreateRequest{Image: busyboxImage, Entrypoint: c.entrypoint, Timeout: 5 * time.Minute, Wait: time.Minute}
			if c.memory != "" {
				r.ResourceLimits = map[string]string{"memory": c.memory}
			}
			sb, err := s.Client.Create(t.Context(), r)
			if sb == nil {
				t.Fatal(err)
			}
			s.Forget(t, sb.ID)
			sb = s.State(t, sb.ID, c.state)
			if sb.Status.Reason != c.reason || !strings.Contains(sb.Status.Message, c.message) {
				t.Errorf("%+v, want reason %s and a message with %q", sb.Status, c.reason, c.message)
			}
			for _, trace := range s.AwaitEnded(sb.ID) {
				t.Errorf("left after the end: %s", trace)
			}
			rc, err := s.Client.Logs(t.Context(), sb.ID, client.LogOptions{})
			if err != nil {
				t.Fatalf("logs of an ended sandbox: %v", err)
			}
			defer rc.Close()
			log, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			if want := c.reason != "ENTRYPOINT_FAILED"; strings.Contains(string(log), "last words") != want {
				t.Errorf("its log is %q", log)
			}
			if _, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "true"}, client.Output{}); !client.IsConflict(err) {
				t.Errorf("a command in an ended sandbox: %v, want 409", err)
			}
			if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLogOptions(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage,
		Entrypoint: []string{"sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; echo to stderr >&2; sleep 0.3; echo end"}})
	read := func(o client.LogOptions) string { return readLogs(t, s, sb.ID, o) }
	// The order between the two streams is not kept, that within each is.
	got := read(client.LogOptions{Follow: true})
	if want := "line 1\nline 2\nline 3\nline 4\nline 5\nend\n"; strings.Replace(got, "to stderr\n", "", 1) != want || len(got) == len(want) {
		t.Errorf("followed: %q", got)
	}
	if got := read(client.LogOptions{Tail: 1}); got != "end\n" {
		t.Errorf("tail 1: %q", got)
	}
	stamped := read(client.LogOptions{Tail: 1, Timestamps: true})
	stamp, rest, _ := strings.Cut(stamped, " ")
	if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || rest != "end\n" || time.Since(at) > time.Minute {
		t.Errorf("with a timestamp: %q", stamped)
	}
	if got := read(client.LogOptions{Since: time.Now().Add(time.Minute)}); got != "" {
		t.Errorf("since the future: %q", got)
	}
}

// A sandbox whose entrypoint prints without end costs a bounded amount of disk.
func TestLogOfAFloodIsBounded(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage,
		Entrypoint: []string{"sh", "-c", "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -c 1073741824; echo; echo done"}})
	s.State(t, sb.ID, client.StateTerminated)
	rc, err := s.Client.Logs(t.Context(), sb.ID, client.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 32<<20 || !strings.HasSuffix(string(b), "done\n") {
		t.Errorf("the log holds %d bytes and ends with %q", len(b), b[max(0, len(b)-20):])
	}
}

func TestImageConfigIsHonoured(t *testing.T) {
	s := sharedServer(t)
	img := imagetest.Busybox(t)
	img.Config.Env = []string{"PATH=/bin", "FROM_IMAGE=image", "BOTH=image"}
	img.Config.User = "user"
	img.Config.WorkingDir = "/work/dir"
	img.Config.Entrypoint = []string{"sh", "-c", `echo "$0 $1 $FROM_IMAGE $BOTH $OPENSANDBOX_ID $(id -u):$(id -g) $PWD $HOME"; sleep 100000`}
	img.Config.Cmd = []string{"arg0", "arg1"}
	importArchive(t, s, imagetest.Archive(t, "docker.io/library/configured:test", img))
	// The rest of the contract's clients always send an entrypoint; without one
	// the image's own runs.
	body := map[string]any{"image": map[string]any{"uri": "configured:test"}, "timeout": 600, "resourceLimits": map[string]any{},
		"env": map[string]any{"BOTH": "request", "NOTHING": nil}}
	var sb sandboxJSON
	r := s.Do(t, http.MethodPost, "/v1/sandboxes", body, "Prefer", "wait=30")
	r.JSON(t, &sb)
	if r.Status != http.StatusAccepted {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	s.Forget(t, sb.ID)
	s.State(t, sb.ID, client.StateRunning)
	want := "arg0 arg1 image request " + sb.ID + " 1000:1000 /work/dir /home/user\n"
	await(t, "the entrypoint to print", func() bool { return logs(t, s, sb.ID) != "" })
	if got := logs(t, s, sb.ID); got != want {
		t.Errorf("the entrypoint printed %q, want %q", got, want)
	}
	if got, want := s.Must(t, sb.ID, `echo "$FROM_IMAGE $BOTH $OPENSANDBOX_ID $(id -u) $PWD"`), "image request "+sb.ID+" 1000 /work/dir"; got != want {
		t.Errorf("a command printed %q, want %q", got, want)
	}
	var got sandboxJSON
	s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID, nil).JSON(t, &got)
	if len(got.Entrypoint) != 5 {
		t.Errorf("the effective entrypoint is %q", got.Entrypoint)
	}
}

func logs(t *testing.T, s *harness.Server, id string) string {
	t.Helper()
	return readLogs(t, s, id, client.LogOptions{})
}

func readLogs(t *testing.T, s *harness.Server, id string, o client.LogOptions) string {
	t.Helper()
	rc, err := s.Client.Logs(t.Context(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An entrypoint that ignores SIGTERM does not hold a delete up.
func TestDeleteOfAStubbornEntrypoint(t *testing.T) {
	s := sharedServer(t)
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage,
		Entrypoint: []string{"sh", "-c", `trap "" TERM INT HUP; while true; do sleep 1; done`}})
	began := time.Now()
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("the delete took %s", d)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}
