package intercept

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/vault"
)

const (
	// maxBuffered is the longest body, in bytes, that is held to say its length
	// after substitution; longer ones go in chunks.
	maxBuffered = 1 << 20
	// maxSubstituted bounds what such a body becomes, and maxGrown what one frame
	// of HTTP/2 does, of any body.
	maxSubstituted = 16 << 20
	maxGrown       = 1 << 20
	maxTarget      = 64 << 10
)

// refusal is why a request is not passed on.
type refusal struct {
	status  int
	code    string
	message string
	// rule is that of the policy, -1 when it is not the policy that refuses.
	rule int
}

// Codes of refusals.
const (
	codePolicy      = "NETWORK_POLICY_DENIED"
	codeMisdirected = "HOST_MISMATCH"
	codeMalformed   = "MALFORMED_REQUEST"
	codePath        = "AMBIGUOUS_PATH"
	codeEncoding    = "ENCODED_BODY"
	codeSubstitute  = "SUBSTITUTION_FAILED"
	codeUnreachable = "DESTINATION_FAILED"
	codeCertificate = "DESTINATION_NOT_TRUSTED"
)

// message is what both versions of HTTP have of a request.
type message interface {
	// values visits each header and puts what visit returns in its place.
	values(visit func(name, value string) string)
	set(name, value string)
}

func (h *head) values(visit func(name, value string) string) {
	for i := range h.fields {
		h.fields[i].value = visit(h.fields[i].name, h.fields[i].value)
	}
}

// framingHeaders are not touched by substitutions.
var framingHeaders = []string{"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "content-encoding"}

// inject puts an injection's credentials into the head of a request, and
// returns the target as it is to be sent. How long something becomes is known
// before it is made: the sandbox writes as many placeholders as it likes.
func inject(m message, target string, in *vault.Injection) (string, *refusal) {
	path, query, hasQuery := strings.Cut(target, "?")
	fits := true
	for i := range in.Substitutions {
		s := &in.Substitutions[i]
		value := s.Value.Reveal()
		if len(value) > vault.MaxSubstituted {
			return "", &refusal{413, codeSubstitute, fmt.Sprintf("the credential in the place of the placeholder %q is longer than the %d bytes that one may have there; "+
				"replace it in the credential vault", s.Placeholder, vault.MaxSubstituted), -1}
		}
		if s.Path && fits {
			path, fits = replaceBoth(path, s.Placeholder, url.PathEscape(s.Placeholder), url.PathEscape(value))
		}
		if s.Query && hasQuery && fits {
			query, fits = replaceBoth(query, s.Placeholder, url.QueryEscape(s.Placeholder), url.QueryEscape(value))
		}
	}
	if hasQuery {
		path += "?" + query
	}
	if !fits || len(path) > maxTarget {
		return "", &refusal{414, codeSubstitute, fmt.Sprintf("with the credentials in it the URL is longer than %d bytes", maxTarget), -1}
	}
	if !injectFields(m, len(path), in) {
		return "", &refusal{431, codeSubstitute, fmt.Sprintf("with the credentials in it the head of the request is longer than %d bytes", maxHead), -1}
	}
	return path, nil
}

// injectFields puts credentials into headers. It reports whether the head, which
// has size bytes without them, stays within maxHead.
func injectFields(m message, size int, in *vault.Injection) bool {
	m.values(func(name, value string) string {
		size += len(name) + len(value) + len(": \r\n")
		return value
	})
	for i := range in.Headers {
		size += len(in.Headers[i].Name) + len(in.Headers[i].Value.Reveal()) + len(": \r\n")
	}
	fits := size <= maxHead
	m.values(func(name, value string) string {
		if !fits || slices.Contains(framingHeaders, strings.ToLower(name)) {
			return value
		}
		for i := range in.Substitutions {
			s := &in.Substitutions[i]
			if !s.Header || !fits {
				continue
			}
			before := len(value)
			value, fits = replaceAll(value, s.Placeholder, s.Value.Reveal(), maxHead-size+before)
			size += len(value) - before
		}
		return value
	})
	if !fits {
		return false
	}
	for i := range in.Headers {
		m.set(in.Headers[i].Name, in.Headers[i].Value.Reveal())
	}
	return true
}

// replaceAll replaces a placeholder, unless more than most bytes would come of
// it.
func replaceAll(s, placeholder, by string, most int) (string, bool) {
	n := strings.Count(s, placeholder)
	if n == 0 {
		return s, true
	}
	if len(s)+n*(len(by)-len(placeholder)) > most {
		return s, false
	}
	return strings.ReplaceAll(s, placeholder, by), true
}

// replaceBoth replaces a placeholder in a part of a target as it is, and as a URL
// writes it.
func replaceBoth(s, plain, escaped, by string) (string, bool) {
	s, fits := replaceAll(s, plain, by, maxTarget)
	if fits && escaped != plain {
		s, fits = replaceAll(s, escaped, by, maxTarget)
	}
	return s, fits
}

// bodyChanges are what is to be replaced in a body, written as its type wants
// it. Nil means that the body stays as it is.
func bodyChanges(in *vault.Injection, contentType string) []change {
	if in == nil {
		return nil
	}
	var changes []change
	for i := range in.Substitutions {
		if s := &in.Substitutions[i]; s.Body {
			changes = append(changes, change{[]byte(s.Placeholder), []byte(written(s.Value.Reveal(), contentType))})
		}
	}
	return changes
}

func written(value, contentType string) string {
	media, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	media = strings.TrimSpace(media)
	switch {
	case media == "application/x-www-form-urlencoded":
		return url.QueryEscape(value)
	case strings.HasSuffix(media, "json"):
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if e.Encode(value) == nil {
			return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(b.String()), `"`), `"`)
		}
	}
	return value
}

// acceptedEncodings are those of a request's Accept-Encoding that an answer can
// be looked into with.
func acceptedEncodings(value string) string {
	if acceptsGzip(value) {
		return "gzip"
	}
	return "identity"
}

func acceptsGzip(value string) bool {
	for part := range strings.SplitSeq(value, ",") {
		coding, params, _ := strings.Cut(part, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		zero := strings.Trim(strings.TrimPrefix(strings.ReplaceAll(params, " ", ""), "q="), "0.") == "" && strings.Contains(params, "0")
		if (coding == "gzip" || coding == "*") && !zero {
			return true
		}
	}
	return false
}

// inspection is how the body of an answer is looked into.
type inspection int

const (
	// opaque bodies pass as they are.
	opaque inspection = iota
	inspected
	// unzipped bodies are looked into and sent on without compression.
	unzipped
)

// inspect decides about the body of an answer.
func inspect(status int, contentType, encoding string) inspection {
	media, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	media = strings.TrimSpace(media)
	text := media == "" || strings.HasPrefix(media, "text/") || media == "application/x-www-form-urlencoded" ||
		strings.HasSuffix(media, "json") || strings.HasSuffix(media, "xml") || strings.HasSuffix(media, "yaml") ||
		strings.HasSuffix(media, "javascript")
	switch encoding = strings.ToLower(strings.TrimSpace(encoding)); {
	case !text:
		return opaque
	case encoding == "" || encoding == "identity":
		return inspected
	case (encoding == "gzip" || encoding == "x-gzip") && status != 206:
		return unzipped
	}
	return opaque
}
