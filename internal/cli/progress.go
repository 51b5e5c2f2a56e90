package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/paddock-sandbox/paddock/client"
)

// progressRefresh is how often bars are drawn.
const progressRefresh = 100 * time.Millisecond

// terminal reports whether progress may be drawn on standard error.
func (a *app) terminal() bool {
	return isTerminal(a.streams.Err) && a.env("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// pull pulls an image and shows how far it is: a bar on a terminal, else one
// line for each phase. Both go to standard error.
func (a *app) pull(ctx context.Context, c *connection, r client.PullRequest) (*client.Image, error) {
	if !a.terminal() {
		last := ""
		return c.PullImage(ctx, r, func(p client.PullProgress) {
			if p.Phase != last {
				last = p.Phase
				fmt.Fprintf(a.streams.Err, "%s: %s\n", r.Image, sanitize(progressText(p)))
			}
		})
	}
	bars := mpb.NewWithContext(ctx, mpb.WithOutput(a.streams.Err), mpb.WithRefreshRate(progressRefresh), mpb.WithWidth(40))
	now := client.PullProgress{Phase: "resolving"}
	text := make(chan client.PullProgress, 1)
	text <- now
	current := func(decor.Statistics) string {
		p := <-text
		text <- p
		return " " + sanitize(phaseText(p))
	}
	bar := bars.AddBar(0,
		mpb.PrependDecorators(decor.Name(r.Image+" "), decor.CountersKibiByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.Any(current)),
		mpb.BarRemoveOnComplete(),
	)
	img, err := c.PullImage(ctx, r, func(p client.PullProgress) {
		<-text
		text <- p
		bar.SetTotal(max(p.BytesTotal, p.BytesDone), false)
		bar.SetCurrent(p.BytesDone)
	})
	bar.Abort(true)
	bars.Wait()
	return img, err
}

// progressText words progress for a log.
func progressText(p client.PullProgress) string {
	if p.Message != "" {
		return p.Message
	}
	return phaseText(p)
}

func phaseText(p client.PullProgress) string {
	if p.LayersTotal > 0 {
		return fmt.Sprintf("%s, %d of %d layers", p.Phase, p.LayersDone, p.LayersTotal)
	}
	return p.Phase
}

// transferBar shows how far a stream is; without a terminal it does nothing.
type transferBar struct {
	bars *mpb.Progress
	bar  *mpb.Bar
}

// transfer starts a bar for a stream of a size, -1 when it is not known.
func (a *app) transfer(name string, size int64) *transferBar {
	if !a.terminal() {
		return &transferBar{}
	}
	bars := mpb.New(mpb.WithOutput(a.streams.Err), mpb.WithRefreshRate(progressRefresh), mpb.WithWidth(40))
	count := decor.CountersKibiByte("% .1f / % .1f")
	if size < 0 {
		count = decor.CurrentKibiByte("% .1f")
	}
	add := bars.AddBar
	if size < 0 {
		add = bars.AddSpinner
	}
	bar := add(max(size, 0),
		mpb.PrependDecorators(decor.Name(sanitize(name)+" "), count),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), " % .1f")),
		mpb.BarRemoveOnComplete(),
	)
	return &transferBar{bars, bar}
}

func (t *transferBar) reader(r io.Reader) io.Reader {
	if t.bar == nil {
		return r
	}
	counted, err := t.bar.ProxyReader(r)
	if err != nil {
		return r // the bar has ended; the transfer goes on without
	}
	return counted
}

// end removes the bar.
func (t *transferBar) end() {
	if t.bar == nil {
		return
	}
	t.bar.Abort(true)
	t.bars.Wait()
}
