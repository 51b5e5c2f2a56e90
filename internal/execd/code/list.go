package code

import (
	"context"
	"net/http"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
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
	// Program is the file that would run it, or the kernel where only a kernel
	// can.
	Program string `json:"program,omitempty"`
	// Missing says what the image lacks.
	Missing string `json:"missing,omitempty"`
}

// listLanguages is GET /code/languages, which the contract does not have.
func (a *API) listLanguages(w http.ResponseWriter, r *http.Request) error {
	g := a.opts.Guest()
	_, path := g.Environ(g.Identity, nil)
	in := a.kernels(g.Cwd)
	ctx, cancel := context.WithTimeout(r.Context(), probeWait)
	defer cancel()
	specs := a.allKernels(ctx, in)
	list := []languageInfo{}
	for _, l := range languages {
		info := languageInfo{Language: l.name, Aliases: l.aliases}
		program, err := l.find(path, g.Cwd)
		if err != nil {
			info.Missing = l.missing()
			if k := first(specs, l.names()...); k != nil {
				info.Missing, info.Available, info.Program = "", true, kernelPrefix+k.Name
			}
		} else {
			info.Program = program
			info.Missing = a.probe(l)
			info.Available = info.Missing == ""
		}
		list = append(list, info)
	}
	for _, k := range specs {
		list = append(list, kernelInfo(in, k))
	}
	web.JSON(w, http.StatusOK, list)
	return nil
}

// kernelInfo describes a kernel, which is asked for by its own name.
func kernelInfo(in *installed, k *jupyter.Spec) languageInfo {
	info := languageInfo{Language: kernelPrefix + k.Name, Available: true}
	if k.Dir == "" {
		// It is on a server, which knows how to start it.
		return info
	}
	program, err := k.Program(in.look)
	if err != nil {
		info.Available, info.Missing = false, k.Argv[0]
		return info
	}
	info.Program = program
	return info
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
