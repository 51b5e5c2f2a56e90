package code

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/command"
	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// orderWait bounds how long a driver may take to accept code.
	orderWait = 20 * time.Second
	// maxEarly bounds what is kept of output between runs, per stream, in
	// bytes.
	maxEarly = 64 << 10
)

// driver is a process that runs the code of one context. It serves one run at
// a time.
type driver struct {
	lang *language
	// program is the name of what runs, for messages.
	program string
	proc    *process.Process
	out     *process.Pipe
	err     *process.Pipe
	orders  *os.File
	acks    *os.File
	halts   [2]*os.File
	// text holds a run's code for a shell, shellRuns counts its runs.
	text      *os.File
	shellRuns int64
	// ready is closed when the driver takes orders.
	ready     chan struct{}
	readyOnce sync.Once

	mu sync.Mutex
	// cur is the run that output and reports belong to; between runs output
	// goes to early, by stream.
	cur   *run
	early [2][]byte
}

// startDriver starts a driver. It does not wait until it is ready.
func startDriver(o Options, lang *language, dir string) (*driver, error) {
	g := o.Guest()
	env, path := g.Environ(g.Identity, nil)
	program, err := lang.find(path, dir)
	if err != nil {
		return nil, err
	}
	d := &driver{lang: lang, program: filepath.Base(program), ready: make(chan struct{})}
	w := &wiring{}
	defer w.closeChild()
	spec := process.Spec{
		Path:       program,
		Argv:       append([]string{filepath.Base(program)}, lang.args...),
		Env:        lang.environ(env),
		Dir:        dir,
		Credential: command.Credential(g.Identity),
	}
	var reports *process.Pipe
	var remove func()
	if reports, err = d.wire(w, &spec); err == nil {
		remove, err = d.writeFile(&spec)
	}
	if err == nil {
		d.proc, err = o.Table.Start(spec)
	}
	if err != nil {
		w.closeOurs()
		if remove != nil {
			remove()
		}
		return nil, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "starting %s for %s: %v", program, lang.name, process.ExplainExec(program, err))
	}
	kinds := [2]string{event.Stdout, event.Stderr}
	go process.PumpAll([]*process.Pipe{d.out, d.err}, func(i int, b []byte) { d.output(kinds[i], b) })
	go reports.Pump((&reportReader{take: d.take, tooLong: d.tooLong}).feed)
	go func() {
		<-d.proc.Done()
		if remove != nil {
			remove()
		}
		for _, f := range []*os.File{d.orders, d.acks, d.halts[0], d.halts[1], d.text} {
			if f != nil {
				f.Close()
			}
		}
	}()
	return d, nil
}

// wiring is what connects a driver: the ends that it gets and those that execd
// keeps.
type wiring struct {
	child []*os.File
	ours  []func()
}

func (w *wiring) closeChild() {
	for _, f := range w.child {
		f.Close()
	}
}

func (w *wiring) closeOurs() {
	for _, f := range w.ours {
		f()
	}
}

// output makes a pipe from the driver.
func (w *wiring) output(p **process.Pipe) (*os.File, error) {
	pipe, end, err := process.NewPipe()
	if err != nil {
		return nil, err
	}
	*p = pipe
	w.child, w.ours = append(w.child, end), append(w.ours, pipe.Abandon)
	return end, nil
}

// input makes a pipe to the driver.
func (w *wiring) input(f **os.File) (*os.File, error) {
	end, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	*f = ours
	w.child, w.ours = append(w.child, end), append(w.ours, func() { ours.Close() })
	return end, nil
}

// wire makes all descriptors of a driver: see the package comment, and for
// shells the file shell.go.
func (d *driver) wire(w *wiring, spec *process.Spec) (reports *process.Pipe, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	w.child = append(w.child, null)
	var outEnd, errEnd, reportEnd, orderEnd *os.File
	if outEnd, err = w.output(&d.out); err != nil {
		return nil, err
	}
	if errEnd, err = w.output(&d.err); err != nil {
		return nil, err
	}
	if reportEnd, err = w.output(&reports); err != nil {
		return nil, err
	}
	if orderEnd, err = w.input(&d.orders); err != nil {
		return nil, err
	}
	spec.Files = []*os.File{null, outEnd, errEnd, orderEnd, reportEnd}
	if d.lang.shell {
		return reports, d.wireShell(w, spec)
	}
	for _, text := range []string{d.lang.core, d.lang.extra} {
		f, err := sealed(text)
		if err != nil {
			return nil, err
		}
		w.child = append(w.child, f)
		spec.Files = append(spec.Files, f)
	}
	ackEnd, err := w.input(&d.acks)
	if err != nil {
		return nil, err
	}
	spec.Files = append(spec.Files, ackEnd)
	for i := range d.halts {
		end, err := w.input(&d.halts[i])
		if err != nil {
			return nil, err
		}
		spec.Files = append(spec.Files, end)
	}
	if d.lang.reopens && spec.Credential != nil {
		// Only the owner of a pipe may open it again.
		for _, f := range []*os.File{orderEnd, reportEnd, ackEnd} {
			if err := f.Chown(int(spec.Credential.Uid), int(spec.Credential.Gid)); err != nil {
				return nil, err
			}
		}
	}
	return reports, nil
}

// writeFile puts the driver's program into a file for those that need one, and
// makes a directory "work" next to it. Only the latter belongs to the driver.
// remove, which is nil when there is no file, removes all of it.
func (d *driver) writeFile(spec *process.Spec) (remove func(), err error) {
	if d.lang.file == "" {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "paddock-driver-")
	if err != nil {
		return nil, err
	}
	removeAll := func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			removeAll()
		}
	}()
	path, work := filepath.Join(dir, d.lang.file), filepath.Join(dir, "work")
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, []byte(d.lang.core), 0o644); err != nil {
		return nil, err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	if c := spec.Credential; c != nil {
		if err := os.Chown(work, int(c.Uid), int(c.Gid)); err != nil {
			return nil, err
		}
	}
	spec.Argv = append(spec.Argv, path)
	return removeAll, nil
}

// sealed holds text in memory, where nobody can change it any more.
func sealed(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("driver", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "driver")
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		f.Close()
		return nil, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing the driver's program: %w", err)
	}
	return f, nil
}

// order gives the driver code to run.
func (d *driver) order(n uint64, code string) error {
	if err := d.orders.SetWriteDeadline(time.Now().Add(orderWait)); err != nil {
		return err
	}
	if d.lang.shell {
		return d.orderShell(n, code)
	}
	if _, err := fmt.Fprintf(d.orders, "run %d %d\n", n, len(code)); err != nil {
		return err
	}
	_, err := d.orders.WriteString(code)
	return err
}

// attach makes x the run that output and reports belong to. What came since the
// last run is x's first output, as a terminal would show it.
func (d *driver) attach(x *run) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, kind := range []string{event.Stdout, event.Stderr} {
		if len(d.early[i]) > 0 {
			x.stream.Output(kind, d.early[i])
			d.early[i] = nil
		}
	}
	d.cur = x
}

func (d *driver) detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cur = nil
}

func (d *driver) current() *run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cur
}

// output is the sink of the driver's output.
func (d *driver) output(kind string, b []byte) {
	i := 0
	if kind == event.Stderr {
		i = 1
	}
	d.mu.Lock()
	x := d.cur
	if x == nil {
		d.early[i] = append(d.early[i], b...)
		if extra := len(d.early[i]) - maxEarly; extra > 0 {
			d.early[i] = append(d.early[i][:0], d.early[i][extra:]...)
		}
	}
	d.mu.Unlock()
	if x != nil {
		x.stream.Output(kind, b)
	}
}

// take passes a report on to its run. One that belongs to no run is dropped,
// but acknowledged if its sender waits for that.
func (d *driver) take(rep report) {
	if rep.Kind == reportReady {
		d.readyOnce.Do(func() {
			// What a program says while it starts is of no interest once it
			// has.
			d.settle(d.proc.Done())
			d.mu.Lock()
			d.early = [2][]byte{}
			d.mu.Unlock()
			close(d.ready)
		})
		return
	}
	if x := d.current(); x != nil && x.n == rep.Run {
		select {
		case x.reports <- rep:
			return
		case <-x.over:
		}
	}
	if rep.Kind == reportDisplay {
		d.acknowledge()
	}
}

// tooLong tells that a report was dropped. Drivers leave out what is too large
// themselves, so only tricks of the user's code come here.
func (d *driver) tooLong() {
	d.output(event.Stderr, fmt.Appendf(nil, "[a report of more than %d bytes was left out]\n", maxReport))
	d.acknowledge()
}

// acknowledge lets the sender of a display go on. It never blocks: a driver
// that lets acknowledgements pile up does not wait for them.
func (d *driver) acknowledge() {
	if d.acks == nil {
		return
	}
	nudge(d.acks, ".")
}

// settle returns when everything printed so far was sent on.
func (d *driver) settle(stop <-chan struct{}) {
	d.out.Settle(stop)
	d.err.Settle(stop)
}

// drain is settle for a driver that has ended.
func (d *driver) drain(stop <-chan struct{}) {
	var both sync.WaitGroup
	both.Go(func() { d.out.Drain(stop) })
	both.Go(func() { d.err.Drain(stop) })
	both.Wait()
}

// interrupt asks a run to stop: the driver, unless it is to be spared, and the
// processes that the run has started. It does nothing when the run is over, and
// what it sends reaches the driver before any later order.
func (d *driver) interrupt(x *run, spare bool) {
	family := d.proc.Family(x.since)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur != x {
		return
	}
	if !spare {
		// The driver first: a shell goes on after a child that was interrupted,
		// unless it was interrupted as well.
		d.proc.Signal(syscall.SIGINT)
	}
	// Each time: what breaks off the code of JavaScript may break off what reads
	// this, too, and Java's machine may overlook a wish to stop. Neither tells.
	for _, f := range d.halts {
		if f != nil {
			nudge(f, fmt.Sprintf("stop %d\n", x.n))
		}
	}
	process.Signal(family, syscall.SIGINT)
}

// nudge writes to a pipe without waiting for room: who lets it fill up does not
// read it.
func nudge(f *os.File, text string) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), []byte(text))
		return true
	})
}

func (d *driver) title() string { return d.program }

func (d *driver) readied() <-chan struct{} { return d.ready }

func (d *driver) done() <-chan struct{} { return d.proc.Done() }

func (d *driver) ending() (process.Exit, string) {
	exit := d.proc.Exit()
	return exit, exit.String()
}

func (d *driver) shell() bool { return d.lang.shell }

func (d *driver) state() string { return "" }

// quit kills the driver: none of them has something to clean up.
func (d *driver) quit() {
	d.kill()
	await(d, killWait)
}

// kill ends the driver and what is in its process group.
func (d *driver) kill() { d.proc.SignalGroup(syscall.SIGKILL) }

// failure explains the end of a driver that was never ready.
func (d *driver) failure() string {
	d.drain(nil)
	d.mu.Lock()
	said := strings.TrimSpace(string(d.early[0]) + string(d.early[1]))
	d.mu.Unlock()
	text := d.proc.Exit().String()
	if said != "" {
		text += ": " + cut(said, 2048)
	}
	return text
}
