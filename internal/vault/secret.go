package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// redacted stands wherever somebody formats a Secret.
const redacted = "[secret]"

// Secret is the value of a credential. However it is printed, logged or
// encoded, it says "[secret]"; only Reveal gives the value. It is read from
// JSON, and never written to it.
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value: value} }

// Reveal returns the value. It must reach neither a log nor an error.
func (s Secret) Reveal() string { return s.value }

// Empty reports whether there is no value.
func (s Secret) Empty() bool { return s.value == "" }

// String hides the value.
func (Secret) String() string { return redacted }

// GoString hides the value from %#v.
func (Secret) GoString() string { return redacted }

// Format hides the value from every verb, those for numbers and bytes too.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the value from structured logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the value.
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// MarshalText hides the value from encoders that prefer text.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalJSON reads the value. Its error doesn't quote the input, as those of
// the standard library do.
func (s *Secret) UnmarshalJSON(data []byte) error {
	var v *string
	if err := json.Unmarshal(data, &v); err != nil || v == nil {
		return errors.New("the value of a credential must be a string")
	}
	s.value = *v
	return nil
}
