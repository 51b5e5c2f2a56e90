package server

import (
	"net/url"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Rules for labels, those of Kubernetes (OpenSandbox lifecycle API).
const (
	maxLabels      = 256
	maxLabelName   = 63
	maxLabelPrefix = 253
	maxLabelValue  = 63
	reservedPrefix = "opensandbox.io/"
)

const labelRule = `may only have letters, digits, "-", "_" and ".", with a letter or digit at either end`

func (d *decoder) metadata(body *value) map[string]string {
	entries := d.entries(body, "metadata", maxLabels)
	if len(entries) == 0 {
		return nil
	}
	labels := make(map[string]string, len(entries))
	for _, e := range entries {
		if strings.HasPrefix(e.name, reservedPrefix) {
			d.fail(invalid(sandbox.CodeInvalidMetadataLabel, "metadata has the key %s; keys that begin with %s are reserved.", quote(e.name), reservedPrefix))
		}
		d.label(e)
		labels[e.name] = e.text
	}
	return labels
}

// label checks one key with its value.
func (d *decoder) label(e member) {
	if d.err != nil || !d.labelKey(e.name) || !d.is(e.value, kindString) {
		return
	}
	if problem := labelValueProblem(e.text); problem != "" {
		d.fail(invalid(sandbox.CodeInvalidMetadataLabel, "metadata has the value %s under %s, %s.", quote(e.text), quote(e.name), problem))
	}
}

func (d *decoder) labelKey(key string) bool {
	if problem := labelKeyProblem(key); problem != "" {
		d.fail(invalid(sandbox.CodeInvalidMetadataLabel, "metadata has the key %s, %s.", quote(key), problem))
		return false
	}
	return true
}

// labelKeyProblem says what is wrong with a key: [prefix/]name.
func labelKeyProblem(key string) string {
	prefix, name, slash := strings.Cut(key, "/")
	if !slash {
		prefix, name = "", key
	} else if prefix == "" || len(prefix) > maxLabelPrefix || !dnsSubdomain(prefix) {
		return "whose part before the slash is not a DNS name in lower case of at most 253 characters"
	}
	switch {
	case name == "":
		return "which has no name"
	case len(name) > maxLabelName:
		return "whose name is longer than 63 characters"
	case !labelText(name):
		return "whose name " + labelRule
	}
	return ""
}

func labelValueProblem(text string) string {
	switch {
	case text == "":
		return ""
	case len(text) > maxLabelValue:
		return "which is longer than 63 characters"
	case !labelText(text):
		return "which " + labelRule
	}
	return ""
}

func labelText(s string) bool {
	for i := range len(s) {
		c := s[i]
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '_' || c == '.')
		if !alphanumeric(c) && !inner {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// maxDNSLabel is from RFC 1035, section 2.3.4.
const maxDNSLabel = 63

// dnsSubdomain is RFC 1123's form: labels of lower case letters, digits and
// inner hyphens, joined by dots.
func dnsSubdomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !dnsLabel(label) || len(label) > maxDNSLabel {
			return false
		}
	}
	return true
}

// dnsLabel is [a-z0-9]([-a-z0-9]*[a-z0-9])?, of any length.
func dnsLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		inner := i > 0 && i < len(s)-1 && c == '-'
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z') && !inner {
			return false
		}
	}
	return s != ""
}

// decodePatch reads a merge patch of labels. Reserved keys have a code of their
// own here, and are refused even for removal (OpenSandbox lifecycle API).
func decodePatch(body *value) (map[string]*string, error) {
	d := new(decoder)
	if !d.is(body, kindObject) {
		return nil, d.err
	}
	if len(body.members) > maxLabels {
		d.refuse("", "has %d entries; at most %d are allowed.", len(body.members), maxLabels)
	}
	patch := make(map[string]*string, len(body.members))
	for _, e := range body.members {
		if strings.HasPrefix(e.name, reservedPrefix) {
			d.fail(invalid(sandbox.CodeReservedMetadata, "metadata key %s: keys that begin with %s are reserved.", quote(e.name), reservedPrefix))
		}
		if e.kind == kindNull {
			patch[e.name] = nil
			continue
		}
		d.label(e)
		text := e.text
		patch[e.name] = &text
	}
	if d.err != nil {
		return nil, d.err
	}
	return patch, nil
}

// maxFilter bounds the text of a label filter.
const maxFilter = 16 << 10

// parseLabelFilter reads k=v&k=v with both sides percent-encoded (OpenSandbox
// lifecycle API). A key that occurs twice counts with its last value.
func parseLabelFilter(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxFilter {
		return nil, invalid(codeMetadataFormat, "metadata is %d bytes long; at most %d are allowed.", len(text), maxFilter)
	}
	filter := make(map[string]string)
	for pair := range strings.SplitSeq(text, "&") {
		rawKey, rawValue, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, invalid(codeMetadataFormat, "metadata has the part %s without a \"=\". Write key=value&key=value.", quote(pair))
		}
		key, err := url.QueryUnescape(rawKey)
		if err != nil {
			return nil, invalid(codeMetadataFormat, "metadata has the key %s with a malformed percent escape.", quote(rawKey))
		}
		val, err := url.QueryUnescape(rawValue)
		if err != nil {
			return nil, invalid(codeMetadataFormat, "metadata has the value %s with a malformed percent escape.", quote(rawValue))
		}
		if filter[key] = val; len(filter) > maxLabels {
			return nil, invalid(codeMetadataFormat, "metadata has more than %d keys.", maxLabels)
		}
	}
	return filter, nil
}
