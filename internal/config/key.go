package config

import (
	"reflect"
	"strings"
)

// envPrefix begins the variables of the environment that paddock reads.
const envPrefix = "PADDOCK_"

// Variables that are not made of a section and a key. PADDOCK_API_KEY and
// PADDOCK_DATA_DIR stand for keys, because clients read them too.
const (
	EnvConfig  = "PADDOCK_CONFIG"   // path of the configuration file
	EnvServer  = "PADDOCK_SERVER"   // server that client commands talk to
	EnvAPIKey  = "PADDOCK_API_KEY"  // server.api_key, and the key that clients send
	EnvDataDir = "PADDOCK_DATA_DIR" // storage.data_dir
)

var envAlias = map[string]string{EnvAPIKey: "server.api_key", EnvDataDir: "storage.data_dir"}

// key is one setting, such as "server.listen".
type key struct {
	name    string
	section string
	secret  bool
	index   [2]int // fields of Config and of the section
	goField [2]string
}

// env is the variable that overrides the key.
func (k *key) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

// field is the key's place in a configuration.
func (k *key) field(c *Config) reflect.Value {
	return reflect.ValueOf(c).Elem().Field(k.index[0]).Field(k.index[1])
}

// keys returns every key in the order of the struct.
func keys() []*key {
	var all []*key
	top := reflect.TypeFor[Config]()
	for i := range top.NumField() {
		section := top.Field(i)
		for j := range section.Type.NumField() {
			f := section.Type.Field(j)
			all = append(all, &key{
				name:    section.Tag.Get("toml") + "." + f.Tag.Get("toml"),
				section: section.Tag.Get("toml"),
				secret:  f.Tag.Get("secret") == "true",
				index:   [2]int{i, j},
				goField: [2]string{section.Type.Name(), f.Name},
			})
		}
	}
	return all
}

// nearest returns the candidate that was most likely meant, or "" when none is
// near: at most a third of the word may differ.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+2
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the edits between two words: insertions, deletions,
// replacements and swaps of neighbours.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
