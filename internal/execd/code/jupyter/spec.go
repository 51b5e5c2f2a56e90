package jupyter

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	// maxSpecs bounds the kernel specs of one directory, and maxSpecFile the
	// size of one in bytes. Their files have a few hundred.
	maxSpecs    = 128
	maxSpecFile = 64 << 10
	// maxName bounds the name of a kernel in bytes.
	maxName = 100
	// maxArgs bounds the arguments of a kernel's command.
	maxArgs = 256
)

// Spec is an installed kernel ("Kernel specs").
type Spec struct {
	// Name is that of its directory, in lower case as Jupyter compares it.
	Name string `json:"-"`
	// Dir is its directory.
	Dir      string            `json:"-"`
	Argv     []string          `json:"argv"`
	Title    string            `json:"display_name"`
	Language string            `json:"language"`
	Mode     string            `json:"interrupt_mode"`
	Env      map[string]string `json:"env"`
}

// ByMessage reports whether the kernel is interrupted by a message instead of
// the signal SIGINT.
func (s *Spec) ByMessage() bool { return s.Mode == "message" }

// Is reports whether the kernel runs a language, whose name may be written in
// upper or lower case.
func (s *Spec) Is(language string) bool { return strings.EqualFold(s.Language, language) }

// Python reports whether the kernel is ipykernel.
func (s *Spec) Python() bool {
	return s.Is("python") && slices.ContainsFunc(s.Argv, func(a string) bool { return a == "ipykernel_launcher" || a == "ipykernel" })
}

// validName reports whether a directory's name can be that of a kernel: letters
// and digits of ASCII, and the characters "-", "." and "_" ("Kernel specs").
func validName(name string) bool {
	other := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-._", c))
	}
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, other)
}

// Paths lists the directories of kernel specs, those with precedence first, as
// Jupyter has them. getenv is the environment, prefixes are the installation
// prefixes of the interpreters in use, and home is the user's directory.
func Paths(getenv func(string) string, prefixes []string, home string) []string {
	var all []string
	add := func(data string) {
		if filepath.IsAbs(data) {
			if dir := filepath.Join(data, "kernels"); !slices.Contains(all, dir) {
				all = append(all, dir)
			}
		}
	}
	for _, dir := range filepath.SplitList(getenv("JUPYTER_PATH")) {
		add(dir)
	}
	for _, prefix := range append([]string{getenv("VIRTUAL_ENV"), getenv("CONDA_PREFIX")}, prefixes...) {
		add(filepath.Join(prefix, "share/jupyter"))
	}
	add(getenv("JUPYTER_DATA_DIR"))
	if data := getenv("XDG_DATA_HOME"); data != "" {
		add(filepath.Join(data, "jupyter"))
	}
	add(filepath.Join(home, ".local/share/jupyter"))
	add("/usr/local/share/jupyter")
	add("/usr/share/jupyter")
	add(filepath.Join(home, ".ipython"))
	return all
}

// Specs reads the kernel specs of the directories. Where two have the same
// name, the first one counts. What is no valid spec is left out: it is for
// nobody who asks for another one.
func Specs(dirs []string) []*Spec {
	var all []*Spec
	for _, dir := range dirs {
		for _, name := range entries(dir) {
			lower := strings.ToLower(name)
			if !validName(name) || slices.ContainsFunc(all, func(s *Spec) bool { return s.Name == lower }) {
				continue
			}
			if s := readSpec(filepath.Join(dir, name)); s != nil {
				s.Name = lower
				all = append(all, s)
			}
		}
	}
	return all
}

// entries lists a directory in alphabetical order.
func entries(dir string) []string {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxSpecs)
	slices.Sort(names)
	return names
}

// readSpec is nil for what is no spec. The file is anybody's.
func readSpec(dir string) *Spec {
	f, err := os.OpenFile(filepath.Join(dir, "kernel.json"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxSpecFile {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSpecFile))
	if err != nil {
		return nil
	}
	return parseSpec(dir, b)
}

func parseSpec(dir string, b []byte) *Spec {
	s := &Spec{Dir: dir}
	if json.Unmarshal(b, s) != nil || len(s.Argv) == 0 || len(s.Argv) > maxArgs || s.Argv[0] == "" {
		return nil
	}
	for _, a := range s.Argv {
		if strings.ContainsRune(a, 0) {
			return nil
		}
	}
	for k, v := range s.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return nil
		}
	}
	return s
}

// bare reports whether a program's name stands for the interpreter that a Python
// kernel was installed with: python, python3 or python3.N.
func bare(name string) bool {
	rest, ok := strings.CutPrefix(name, "python")
	return ok && strings.Trim(rest, "0123456789.") == ""
}

// Program is the file or name of the kernel's program. A bare "python" means
// the interpreter of the prefix that the spec is in; look, which searches PATH,
// finds all other names.
func (s *Spec) Program(look func(string) (string, error)) (string, error) {
	name := s.Argv[0]
	if !bare(name) {
		return look(name)
	}
	own := filepath.Join(s.prefix(), "bin", name)
	if st, err := os.Stat(own); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
		return own, nil
	}
	found, err := look(name)
	if err != nil && name != "python3" {
		// Debian has no program "python".
		return look("python3")
	}
	return found, err
}

// prefix is the directory above share/jupyter/kernels/NAME.
func (s *Spec) prefix() string { return filepath.Join(s.Dir, "../../../..") }

// Command is the argument list with the connection file's name in it.
func (s *Spec) Command(file string) []string {
	put := strings.NewReplacer("{connection_file}", file, "{resource_dir}", s.Dir, "{prefix}", s.prefix())
	argv := make([]string, len(s.Argv))
	for i, a := range s.Argv {
		argv[i] = put.Replace(a)
	}
	return argv
}

// Environ adds the spec's variables to an environment. ${NAME} in a value
// stands for what the environment has.
func (s *Spec) Environ(env []string, getenv func(string) string) []string {
	names := make([]string, 0, len(s.Env))
	for k := range s.Env {
		names = append(names, k)
	}
	slices.Sort(names)
	all := slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		_, given := s.Env[name]
		return given
	})
	for _, k := range names {
		all = append(all, k+"="+os.Expand(s.Env[k], getenv))
	}
	return all
}
