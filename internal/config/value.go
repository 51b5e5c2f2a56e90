package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Duration is a span of time written as "10s", "5m" or "24h".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes, written as a number or with a unit: "512Mi",
// "2Gi" (powers of 1024), "500M", "2G" (powers of 1000).
type Size int64

// The units of sizes (OpenSandbox configuration), largest first.
var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"K", 1e3},
}

func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.factor == 0 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

var errSize = fmt.Errorf("want a number of bytes such as 1048576, %q or %q", "512Mi", "2Gi")

// ParseSize reads a Size. Units may be in either case and end with "b" or "B".
func ParseSize(s string) (Size, error) {
	lower := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b")
	factor := int64(1)
	for _, u := range sizeUnits {
		if number, ok := strings.CutSuffix(lower, strings.ToLower(u.suffix)); ok {
			lower, factor = strings.TrimSpace(number), u.factor
			break
		}
	}
	n, err := strconv.ParseUint(lower, 10, 63)
	if err != nil {
		return 0, errSize
	}
	if int64(n) > math.MaxInt64/factor {
		return 0, errors.New("is larger than any size that can be")
	}
	return Size(int64(n) * factor), nil
}

// ParseCPU reads "500m", "0.5" or "2" as thousandths of a CPU.
func ParseCPU(s string) (int64, error) {
	wrong := fmt.Errorf("want a number of CPUs such as %q, %q or %q", "500m", "0.5", "2")
	milli := s
	exp := 3
	if m, ok := strings.CutSuffix(s, "m"); ok {
		milli, exp = m, 0
	}
	whole, frac, _ := strings.Cut(milli, ".")
	if len(frac) > exp || whole+frac == "" || strings.ContainsAny(milli, "+-_eExX") {
		return 0, wrong
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", exp-len(frac)), 10, 64)
	if err != nil || n <= 0 || n > 1_000_000 {
		return 0, wrong
	}
	return n, nil
}

// assign sets a field from a value of TOML or from a string of the environment
// or a flag. Its errors say what the field takes.
func assign(field reflect.Value, v any) error {
	switch p := field.Addr().Interface().(type) {
	case *Duration:
		return assignDuration(p, v)
	case *Size:
		return assignSize(p, v)
	case *string:
		s, ok := v.(string)
		if !ok {
			return errors.New("want a text in quotes")
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return errors.New("holds a control character")
		}
		*p = s
	case *bool:
		switch b := v.(type) {
		case bool:
			*p = b
			return nil
		case string:
			if parsed, err := strconv.ParseBool(b); err == nil {
				*p = parsed
				return nil
			}
		}
		return errors.New("want true or false")
	case *int:
		n, err := strconv.Atoi(fmt.Sprint(v))
		if _, isFloat := v.(float64); err != nil || isFloat {
			return errors.New("want a whole number")
		}
		*p = n
	case *[]string:
		return assignList(p, v)
	default:
		return fmt.Errorf("has the type %s, for which there is no reader", field.Type())
	}
	return nil
}

func assignDuration(p *Duration, v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("want a duration in quotes, with a unit, such as %q", "10s")
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("want a duration with a unit, such as %q, %q or %q", "10s", "5m", "24h")
	}
	*p = Duration(d)
	return nil
}

func assignSize(p *Size, v any) error {
	switch v.(type) {
	case string, int64:
	default:
		return errSize
	}
	n, err := ParseSize(fmt.Sprint(v))
	if err != nil {
		return err
	}
	*p = n
	return nil
}

func assignList(p *[]string, v any) error {
	list := []string{}
	switch l := v.(type) {
	case string:
		for _, s := range strings.Split(l, ",") {
			if s = strings.TrimSpace(s); s != "" {
				list = append(list, s)
			}
		}
	case []any:
		for _, item := range l {
			s, ok := item.(string)
			if !ok {
				return fmt.Errorf("want a list of texts such as [%q, %q]", "a", "b")
			}
			list = append(list, s)
		}
	default:
		return fmt.Errorf("want a list of texts such as [%q, %q]", "a", "b")
	}
	*p = list
	return nil
}

// format writes a value as TOML.
func format(field reflect.Value) string {
	switch v := field.Interface().(type) {
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = strconv.Quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case bool, int:
		return fmt.Sprint(v)
	default:
		return strconv.Quote(fmt.Sprint(v))
	}
}
