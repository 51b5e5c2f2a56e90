package web

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReadJSON(t *testing.T) {
	for _, c := range []struct {
		body             string
		ok, optional     bool
		says             string
		want, wantOption int
	}{
		{body: `{"n":1}`, ok: true, optional: true, want: 1, wantOption: 1},
		{body: " \n\t{\"n\":1} trailing", ok: true, optional: true, want: 1, wantOption: 1},
		{body: strings.Repeat(" ", 5000) + `{"n":1}`, ok: true, optional: true, want: 1, wantOption: 1},
		{body: ``, optional: true, says: "empty"},
		{body: `  `, optional: true, says: "empty"},
		{body: `null`, optional: true, says: "null"},
		{body: "\n null ", optional: true, says: "null"},
		{body: `nul`, says: ""},
		{body: `[]`, says: ""},
		{body: `{"n":"x"}`, says: "n"},
	} {
		var v struct{ N int }
		err := ReadJSON(httptest.NewRecorder(), httptest.NewRequest("POST", "/", strings.NewReader(c.body)), &v)
		if (err == nil) != c.ok || v.N != c.want || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.20q: %v, %d", c.body, err, v.N)
		}
		v.N = 0
		err = ReadOptionalJSON(httptest.NewRecorder(), httptest.NewRequest("POST", "/", strings.NewReader(c.body)), &v)
		if (err == nil) != c.optional || v.N != c.wantOption {
			t.Errorf("optional %.20q: %v, %d", c.body, err, v.N)
		}
	}
}
