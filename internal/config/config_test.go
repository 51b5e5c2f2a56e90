package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsAreValid(t *testing.T) {
	path := write(t, "")
	l, err := Load(LoadOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.Config, Default()) {
		t.Errorf("an empty file changed the defaults: %+v", l.Config)
	}
	if s := l.Source("server.listen"); s != "default" {
		t.Errorf("source of a default = %q", s)
	}
}

func TestPrecedence(t *testing.T) {
	path := write(t, "[server]\nlisten = \"127.0.0.1:1\"\n[log]\nlevel = \"debug\"\n[pool]\nsize = 3\n")
	l, err := Load(LoadOptions{
		Path:      path,
		Environ:   []string{"PADDOCK_SERVER_LISTEN=127.0.0.1:2", "PADDOCK_LOG_LEVEL=warn", "HOME=/x", "PADDOCK_SERVER=http://elsewhere"},
		Overrides: []Override{{"server.listen", "127.0.0.1:3", "flag --listen"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ key, got, want, source string }{
		{"server.listen", l.Server.Listen, "127.0.0.1:3", "flag --listen"},
		{"log.level", l.Log.Level, "warn", "environment variable PADDOCK_LOG_LEVEL"},
		{"pool.size", format(reflect.ValueOf(l.Pool.Size)), "3", path + ":6"},
	} {
		if c.got != c.want || l.Source(c.key) != c.source {
			t.Errorf("%s = %q from %q, want %q from %q", c.key, c.got, l.Source(c.key), c.want, c.source)
		}
	}
}

func TestEveryTypeFromFileAndEnvironment(t *testing.T) {
	path := write(t, `
storage.min_free = "512Mi"
[image]
max_unpacked_bytes = 2097152
resolve_timeout = "3s"
plain_http = ["a:1", "b"]
[server]
insecure_no_auth = true
`)
	l, err := Load(LoadOptions{Path: path, Environ: []string{
		"PADDOCK_SERVER_MAX_BODY_BYTES=2Mi", "PADDOCK_NETWORK_ALLOWED_RANGES=10.1.2.0/24, 10.3.0.0/16",
		"PADDOCK_SANDBOX_MAX_PENDING=7", "PADDOCK_DATA_DIR=/srv/p",
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Storage.MinFree = 512 << 20
	want.Storage.DataDir = "/srv/p"
	want.Image.MaxUnpackedBytes = 2 << 20
	want.Image.ResolveTimeout = Duration(3 * time.Second)
	want.Image.PlainHTTP = []string{"a:1", "b"}
	want.Server.InsecureNoAuth = true
	want.Server.MaxBodyBytes = 2 << 20
	want.Network.AllowedRanges = []string{"10.1.2.0/24", "10.3.0.0/16"}
	want.Sandbox.MaxPending = 7
	if !reflect.DeepEqual(l.Config, want) {
		t.Errorf("got  %+v\nwant %+v", l.Config, want)
	}
}

// Each case gives the file (or environment, or flags) and what the error must
// say. FILE stands for the path of the file.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name, file string
		env        []string
		flags      []Override
		want       []string
	}{
		{name: "unknown key", file: "[server]\nlisen = \"x\"\n",
			want: []string{`FILE:2: "lisen" is not a key of [server]. Did you mean "server.listen"?`}},
		{name: "key in the wrong section", file: "[server]\ndata_dir = \"/x\"\n",
			want: []string{`FILE:2: "data_dir" is not a key of [server]. Did you mean "storage.data_dir"?`}},
		{name: "unknown section", file: "\n[servr]\nlisten = \"x\"\n",
			want: []string{`FILE:2: [servr] is not a section. Did you mean [server]?`}},
		{name: "far from everything", file: "[zzzzzzzzzzzzzz]\n",
			want: []string{"FILE:1: [zzzzzzzzzzzzzz] is not a section. The sections are server, log"}},
		{name: "outside of a section", file: "listen = \"x\"\n",
			want: []string{`FILE:1: "listen" stands outside of a section. Did you mean "server.listen"?`}},
		{name: "inline table", file: "server = { listn = \"x\" }\n",
			want: []string{`FILE:1: "listn" is not a key of [server].`}},
		{name: "syntax", file: "[server]\nlisten = \n", want: []string{"FILE:2:"}},
		{name: "wrong type", file: "[server]\nlisten = 8080\n",
			want: []string{`FILE:2: server.listen = "8080": want a text in quotes`}},
		{name: "duration without a unit", file: "[image]\nresolve_timeout = 10\n",
			want: []string{`FILE:2: image.resolve_timeout = "10": want a duration in quotes, with a unit`}},
		{name: "size", file: "[storage]\nmin_free = \"lots\"\n",
			want: []string{`FILE:2: storage.min_free = "lots": want a number of bytes`}},
		{name: "float where an integer is due", file: "[pool]\nsize = 1.0\n",
			want: []string{`pool.size = "1": want a whole number`}},
		{name: "list of numbers", file: "[image]\nplain_http = [1]\n", want: []string{"want a list of texts"}},
		{name: "out of range", file: "[pool]\nsize = -1\n",
			want: []string{`FILE:2: pool.size = "-1": want a number from 0 to 1024`}},
		{name: "all at once", file: "[log]\nlevel = \"loud\"\nformat = \"xml\"\n",
			want: []string{`log.level = "loud": want one of debug, info, warn, error`, `log.format = "xml": want one of text, json`}},
		{name: "misspelt variable", env: []string{"PADDOCK_SERVR_LISTEN=x"},
			want: []string{"environment variable PADDOCK_SERVR_LISTEN: is not known. Did you mean PADDOCK_SERVER_LISTEN?"}},
		{name: "misspelt alias", env: []string{"PADDOCK_APIKEY=x"},
			want: []string{"Did you mean PADDOCK_API_KEY?"}},
		{name: "variable of a section", env: []string{"PADDOCK_LOG_ROTATION_AND_OTHER_THINGS=x"},
			want: []string{"environment variable PADDOCK_LOG_ROTATION_AND_OTHER_THINGS: is not known."}},
		{name: "bad value of a variable", env: []string{"PADDOCK_POOL_SIZE=many"},
			want: []string{`environment variable PADDOCK_POOL_SIZE: pool.size = "many": want a whole number`}},
		{name: "alias and variable differ", env: []string{"PADDOCK_DATA_DIR=/a", "PADDOCK_STORAGE_DATA_DIR=/b"},
			want: []string{"PADDOCK_DATA_DIR: differs from PADDOCK_STORAGE_DATA_DIR"}},
		{name: "unknown key of a flag", flags: []Override{{"pool.sise", "1", "flag --set"}},
			want: []string{`flag --set: "pool.sise" is not a key. Did you mean "pool.size"?`}},
		{name: "no key on a public address", file: "[server]\nlisten = \"0.0.0.0:80\"\ninsecure_no_auth = true\n",
			want: []string{"FILE:3: server.insecure_no_auth", "0.0.0.0:80", "FILE:2", "reachable from other machines"}},
		{name: "short key", file: "[server]\napi_key = \"hunter2\"\n", want: []string{"FILE:2: server.api_key: want 16 to 512"}},
		{name: "authorities at a relative path", file: "[egress]\nupstream_ca_file = \"ca.pem\"\n", want: []string{"egress.upstream_ca_file", "absolute"}},
		{name: "half of TLS", file: "[server]\ntls_cert = \"/x\"\n", want: []string{"set both or neither"}},
		{name: "webhook that is no URL", file: "[egress]\ndeny_webhook = \"ftp://very-secret\"\n", want: []string{"egress.deny_webhook", "want a URL such as"}},
		{name: "public host with a scheme", file: "[server]\npublic_host = \"https://x\"\n", want: []string{"without a scheme"}},
		{name: "subnet", file: "[network]\nsubnet = \"10.0.0.1/16\"\n", want: []string{"begins at its first address"}},
		{name: "resolver", file: "[network]\ndns_upstreams = [\"dns.example\"]\n", want: []string{`network.dns_upstreams = "dns.example"`}},
		{name: "relative path", file: "[storage]\ndata_dir = \"data\"\n", want: []string{"want an absolute path"}},
		{name: "whole machine", file: "[storage]\nallowed_host_paths = [\"/\"]\n", want: []string{"name directories"}},
		{name: "kind of GPU", file: "[gpu]\nkind = \"nvidia\"\n", want: []string{`FILE:2: gpu.kind = "nvidia"`, "nvidia.com/gpu"}},
		{name: "relative directory of GPUs", file: "[gpu]\ncdi_dirs = [\"cdi\"]\n", want: []string{"gpu.cdi_dirs", "want an absolute path"}},
		{name: "cpu", file: "[sandbox]\ndefault_cpu = \"fast\"\n", want: []string{"want a number of CPUs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, c.file)
			_, err := Load(LoadOptions{Path: path, Environ: c.env, Overrides: c.flags})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if want = strings.ReplaceAll(want, "FILE", path); !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say\n  %s\nbut\n  %s", want, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error repeats a secret")
			}
		})
	}
}

func TestUnrelatedVariablesAreIgnored(t *testing.T) {
	_, err := Load(LoadOptions{Path: write(t, ""), Environ: []string{"PADDOCK_BENCH_DURATION_OF_SOMETHING=1", "PADDOCK_SERVER=x", "PATH=/bin"}})
	if err != nil {
		t.Error(err)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := Load(LoadOptions{Path: filepath.Join(t.TempDir(), "no.toml")}); err == nil {
		t.Error("a named file that is missing is no error")
	}
}

func TestSecretsAreMasked(t *testing.T) {
	const secret = "very-secret-very-secret"
	l, err := Load(LoadOptions{Path: write(t, "[server]\napi_key = \""+secret+"\"\n")})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.WriteTOML(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), secret) || !strings.Contains(out.String(), mask) {
		t.Errorf("not masked:\n%s", out.String())
	}
	if v := l.Values()["server"]["api_key"]; v != mask {
		t.Errorf("Values shows %v", v)
	}
}

// What `paddock config` prints can be read again and gives the same values.
func TestWriteTOMLRoundTrip(t *testing.T) {
	l, err := Load(LoadOptions{Path: write(t, "[image]\nplain_http = [\"a\", \"b\"]\n[storage]\nmin_free = \"3Gi\"\n")})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.WriteTOML(&out); err != nil {
		t.Fatal(err)
	}
	again, err := Load(LoadOptions{Path: write(t, out.String())})
	if err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	if !reflect.DeepEqual(l.Config, again.Config) {
		t.Errorf("got %+v\nwant %+v", again.Config, l.Config)
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	all, sections, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s has no documentation: %q", k.Name, k.Doc)
		}
		if sections[k.Section] == "" {
			t.Errorf("[%s] has no documentation", k.Section)
		}
	}
	var out bytes.Buffer
	if err := WriteMarkdown(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## [network]", "### listen", "Default `\"127.0.0.1:8080\"`. Environment `PADDOCK_SERVER_LISTEN`."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the reference lacks %q", want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "1": 1, "1024": 1024, "1k": 1000, "1Ki": 1024, "512Mi": 512 << 20, "512MiB": 512 << 20,
		"2gi": 2 << 30, "1G": 1e9, "1t": 1e12, "3 Mi": 3 << 20, "7b": 7,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1.5Gi", "Mi", "9999999999999Ti", "1 2", "0x10"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestParseCPU(t *testing.T) {
	for in, want := range map[string]int64{"1": 1000, "500m": 500, "0.5": 500, "2.125": 2125, ".5": 500} {
		if got, err := ParseCPU(in); err != nil || got != want {
			t.Errorf("ParseCPU(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "0", "-1", "+1", "1.5m", "0.0001", "1e3", "2000000", ".", "1_0"} {
		if got, err := ParseCPU(in); err == nil {
			t.Errorf("ParseCPU(%q) = %d, want an error", in, got)
		}
	}
}

// keyLines walks what the decoder accepted; it must not fall over anything.
func FuzzKeyLines(f *testing.F) {
	for _, s := range []string{"[a]\nb=1", "a.b.c=1", "a={b={c=1},d=2}", "[[x]]\ny=1", "\"q.k\"=1", "[a.b]\n\n# c\nd = \"\"\"x\n\"\"\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var doc map[string]any
		if toml.Unmarshal(data, &doc) != nil {
			return
		}
		keyLines(data)
		l := &loader{out: &Loaded{Config: Default(), sources: map[string]string{}}, keys: map[string]*key{}}
		_ = l.parse("f", data)
	})
}

func TestReferenceIsCurrent(t *testing.T) {
	var want bytes.Buffer
	if err := WriteMarkdown(&want); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("docs/configuration.md is stale: run `go generate ./internal/config`")
	}
}
