package files

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// arrayBuffer is how much of an answer is gathered before it is sent, in bytes.
const arrayBuffer = 64 << 10

// array writes a JSON array element by element, so that a listing of any length
// takes the same memory. While nothing has been sent an error is still answered
// as one.
type array struct {
	w    http.ResponseWriter
	buf  []byte
	sent bool
}

func (a *array) add(v any) error {
	element, err := json.Marshal(v)
	if err != nil {
		return err
	}
	mark := byte(',')
	if len(a.buf) == 0 && !a.sent {
		mark = '['
	}
	a.buf = append(append(a.buf, mark), element...)
	if len(a.buf) < arrayBuffer {
		return nil
	}
	return a.send()
}

func (a *array) send() error {
	if !a.sent {
		a.sent = true
		a.w.Header().Set("Content-Type", "application/json")
		a.w.WriteHeader(http.StatusOK)
	}
	_, err := a.w.Write(a.buf)
	a.buf = a.buf[:0]
	return err
}

// end completes the answer. When err says that the array is not complete, and a
// part of it was sent, the connection is broken off: a short array must not look
// like a whole one.
func (a *array) end(err error) error {
	if err != nil && a.sent {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		return err
	}
	if len(a.buf) == 0 && !a.sent {
		a.buf = append(a.buf, '[')
	}
	a.buf = append(a.buf, ']')
	if !a.sent {
		a.w.Header().Set("Content-Length", strconv.Itoa(len(a.buf)))
	}
	_ = a.send() // an error is the client's going
	return nil
}
