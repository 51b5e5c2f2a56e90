package h2

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

// order checks what may come after what.
func (r *relay) order(e *end, f *frame) error {
	if !e.settled && (f.kind != http2.FrameSettings || f.flags&http2.FlagSettingsAck != 0) {
		return broken{http2.ErrCodeProtocol, "the first frame is no SETTINGS"}
	}
	if (e.block.id != 0) != (f.kind == http2.FrameContinuation) || e.block.id != 0 && f.id != e.block.id {
		return broken{http2.ErrCodeProtocol, "a header block is interrupted, or continued where there is none"}
	}
	return nil
}

// common handles the frames that are the same from both sides.
func (r *relay) common(e *end, s *stream, f *frame, data func(b []byte, size int) error) error {
	switch f.kind {
	case http2.FrameData:
		if f.id == 0 {
			return broken{http2.ErrCodeProtocol, "DATA is for no stream"}
		}
		b, err := f.unpad()
		if err != nil {
			return err
		}
		if len(b) > 0 {
			// It leads to updates of windows: some libraries send two for each
			// frame, others one for each kilobyte that is read.
			r.other(e).budget.earn(4 + len(b)/1024)
		} else if !f.ends() && !e.budget.spend() {
			return errFlood
		}
		if e.recv -= int64(len(f.payload)); e.recv < 0 {
			return broken{http2.ErrCodeFlowControl, "more was sent than the window allows"}
		}
		if s != nil {
			err = data(b, len(f.payload))
		} else if !e.budget.spend() {
			err = errFlood
		}
		r.grantAll(e, r.opposite(e))
		return err
	case http2.FrameWindowUpdate:
		if !e.budget.spend() {
			return errFlood
		}
		return r.window(e, s, f)
	}
	if !e.budget.spend() {
		return errFlood
	}
	switch f.kind {
	case http2.FrameSettings:
		return r.settings(e, f)
	case http2.FramePing:
		return r.ping(e, f)
	case http2.FramePriority:
		if f.id == 0 || len(f.payload) != 5 {
			return broken{http2.ErrCodeProtocol, "a PRIORITY is malformed"}
		}
	}
	return nil
}

var errFlood = broken{http2.ErrCodeEnhanceYourCalm, "too many frames that cost work and bring none"}

// other is the other end, or e itself where there is none.
func (r *relay) other(e *end) *end {
	if o := r.opposite(e); o != nil {
		return o
	}
	return e
}

func (r *relay) ping(e *end, f *frame) error {
	if f.id != 0 || len(f.payload) != 8 {
		return broken{http2.ErrCodeFrameSize, "a PING is malformed"}
	}
	to, flags := r.opposite(e), f.flags&http2.FlagPingAck
	if to == nil {
		if flags != 0 {
			return nil
		}
		to, flags = e, http2.FlagPingAck
	}
	out := to.out()
	*out = append(appendHeader(*out, 8, http2.FramePing, flags, 0), f.payload...)
	return nil
}

// maxSettings bounds the entries of one SETTINGS; seven are defined.
const maxSettings = 64

// settings takes an end's settings (RFC 9113, 6.5.2).
func (r *relay) settings(e *end, f *frame) error {
	if f.id != 0 || len(f.payload)%6 != 0 || f.flags&http2.FlagSettingsAck != 0 && len(f.payload) > 0 {
		return broken{http2.ErrCodeFrameSize, "a SETTINGS is malformed"}
	}
	if f.flags&http2.FlagSettingsAck != 0 {
		return nil
	}
	// Each costs work, so a frame of many counts as many frames.
	n := len(f.payload) / 6
	if n > maxSettings {
		return errFlood
	}
	for range n {
		if !e.budget.spend() {
			return errFlood
		}
	}
	changed, window := false, int64(-1)
	for b := f.payload; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(b)) {
		case http2.SettingHeaderTableSize:
			e.enc.SetMaxDynamicTableSizeLimit(min(v, 4096))
		case http2.SettingEnablePush:
			if v > 1 || v == 1 && e == r.server {
				return broken{http2.ErrCodeProtocol, "a setting has a value that it can't have"}
			}
		case http2.SettingMaxFrameSize:
			if v < maxFrame || v > 1<<24-1 {
				return broken{http2.ErrCodeProtocol, "a setting has a value that it can't have"}
			}
		case http2.SettingInitialWindowSize:
			if v > maxWindow {
				return broken{http2.ErrCodeFlowControl, "a window is larger than allowed"}
			}
			window = int64(v) // the last one counts: each would touch all streams
		case http2.SettingMaxConcurrentStreams:
			if most := min(v, uint32(r.o.MaxStreams)); e == r.server && most != r.maxStreams {
				r.maxStreams, changed = most, true
			}
		case http2.SettingEnableConnectProtocol:
			if on := v == 1; e == r.server && on && !r.connect {
				r.connect, changed = true, true
			}
		}
	}
	if window >= 0 {
		if err := r.resize(e, window); err != nil {
			return err
		}
	}
	e.acks++
	if first := !e.settled; first {
		e.settled = true
		_ = e.conn.SetReadDeadline(time.Time{})
		switch {
		case e == r.client && r.server != nil && r.lost == nil:
			r.greetServer()
		case e == r.server:
			r.greetClient()
		}
	} else if changed {
		r.greetClient()
	}
	if e.greet == nil {
		r.acknowledge(e)
	}
	if err := r.pumpAll(e); err != nil {
		return err
	}
	r.grantAll(r.opposite(e), e)
	return nil
}

// resize changes the windows of all streams of an end.
func (r *relay) resize(e *end, to int64) error {
	by := to - e.initial
	e.initial = to
	for _, s := range r.streams {
		f := &s.down
		if e == r.server {
			f = &s.up
		}
		if f.send += by; f.send > maxWindow {
			return broken{http2.ErrCodeFlowControl, "a window is larger than allowed"}
		}
	}
	return nil
}

// block collects a header block and hands it over once it is whole.
func (r *relay) block(e *end, f *frame, head func(id uint32, end bool, d *decoded) error) error {
	b, p := f.payload, &e.block
	if f.kind == http2.FrameHeaders {
		if f.id == 0 {
			return broken{http2.ErrCodeProtocol, "HEADERS are for no stream"}
		}
		var err error
		if b, err = f.unpad(); err != nil {
			return err
		}
		if f.flags&http2.FlagHeadersPriority != 0 {
			if len(b) < 5 {
				return broken{http2.ErrCodeFrameSize, "HEADERS are shorter than their priority"}
			}
			b = b[5:]
		}
		p.id, p.flags, p.frames = f.id, f.flags, 0
		if f.flags&http2.FlagHeadersEndHeaders != 0 {
			return r.decode(e, b, head)
		}
	}
	if p.frames++; p.frames > maxContinuations || len(p.b)+len(b) > MaxHead {
		return broken{http2.ErrCodeEnhanceYourCalm, "a header block is too long, or has too many frames"}
	}
	p.b = append(p.b, b...)
	if f.flags&http2.FlagHeadersEndHeaders == 0 {
		return nil
	}
	whole := p.b
	p.b = nil
	return r.decode(e, whole, head)
}

// decode decodes a header block. Even one of a stream that nobody knows changes
// the header table.
func (r *relay) decode(e *end, b []byte, head func(id uint32, end bool, d *decoded) error) error {
	d := &decoded{fields: make([]Field, 0, 24)}
	e.decoding = d
	id, flags := e.block.id, e.block.flags
	e.block.id = 0
	_, err := e.dec.Write(b)
	if err == nil {
		err = e.dec.Close()
	}
	if err != nil {
		return broken{http2.ErrCodeCompression, "a header block can't be decoded"}
	}
	return head(id, flags&http2.FlagHeadersEndStream != 0, d)
}
