package code

import (
	"net/http"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// probeWait bounds how long the list of languages waits for one of them.
const probeWait = 10 * time.Second

// languageInfo is one element of GET /code/languages.
type languageInfo struct {
	Language string   `json:"language"`
	Aliases  []string `json:"aliases,omitempty"`
	// Available says whether this image can run it.
	Available bool `json:"available"`
	// Program is the file that would run it.
	Program string `json:"program,omitempty"`
	// Missing says what the image lacks.
	Missing string `json:"missing,omitempty"`
}

// listLanguages is GET /code/languages, which the contract does not have.
func (a *API) listLanguages(w http.ResponseWriter, r *http.Request) error {
	g := a.opts.Guest()
	_, path := g.Environ(g.Identity, nil)
	list := []languageInfo{}
	for _, l := range languages {
		info := languageInfo{Language: l.name, Aliases: l.aliases}
		program, err := l.find(path, g.Cwd)
		if err != nil {
			info.Missing = l.missing()
		} else {
			info.Program = program
			info.Missing = a.probe(l)
			info.Available = info.Missing == ""
		}
		list = append(list, info)
	}
	web.JSON(w, http.StatusOK, list)
	return nil
}

// probe says what a language lacks though its program is there; empty for
// nothing. Only languages for which that can be are tried.
func (a *API) probe(l *language) string {
	if !l.probe {
		return ""
	}
	d, err := startDriver(a.opts, l, a.opts.Guest().Cwd)
	if err != nil {
		return err.Error()
	}
	defer d.kill()
	timer := time.NewTimer(probeWait)
	defer timer.Stop()
	select {
	case <-d.ready:
		return ""
	case <-d.proc.Done():
		return d.failure()
	case <-timer.C:
		return "it does not get ready within " + probeWait.String()
	}
}
