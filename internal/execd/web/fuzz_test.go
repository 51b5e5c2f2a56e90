package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"testing"
)

// FuzzReadJSON: a body is taken or refused with a status of 4xx and words that
// are valid JSON again, and an optional one is refused only if the other is.
func FuzzReadJSON(f *testing.F) {
	for _, s := range []string{`{"s":"x","n":1,"l":[1],"m":{"a":"b"}}`, ` null `, `nul`, `{"n":1e999}`, `{"s":1}`, `[[[[`, "{\"s\":\"\xff\"}", `{} {`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		type value struct {
			S string            `json:"s"`
			N *int64            `json:"n"`
			L []int             `json:"l"`
			M map[string]string `json:"m"`
		}
		var v, optional value
		err := ReadJSON(httptest.NewRecorder(), httptest.NewRequest("POST", "/", bytes.NewReader(body)), &v)
		var refusal *Error
		if err != nil && (!errors.As(err, &refusal) || refusal.Status < 400 || refusal.Status > 499 || refusal.Message == "") {
			t.Errorf("refused with %#v", err)
		}
		if refusal != nil {
			if _, err := json.Marshal(refusal.Message); err != nil || len(refusal.Message) > len(body)+1000 {
				t.Errorf("the message is %d bytes, %v", len(refusal.Message), err)
			}
		}
		if oerr := ReadOptionalJSON(httptest.NewRecorder(), httptest.NewRequest("POST", "/", bytes.NewReader(body)), &optional); oerr != nil && err == nil {
			t.Errorf("an optional body is refused, %v, and a needed one is not", oerr)
		}
	})
}
