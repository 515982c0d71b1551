package vmc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"unicode"

	godbus "github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// messageJSON is a message as JSON with the names of the contract and all of
// its fields, so that a script finds what it looks for.
func messageJSON(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	// protojson varies its spaces on purpose.
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return nil, err
	}
	return compact.Bytes(), nil
}

func (a *app) printJSON(m proto.Message) error {
	b, err := messageJSON(m)
	if err != nil {
		return err
	}
	return a.printValue(b)
}

// printValue prints any value as JSON, for people to read as well: with
// sorted keys and indented.
func (a *app) printValue(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var sorted any
	if err := json.Unmarshal(b, &sorted); err != nil {
		return err
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(sorted); err != nil {
		return err
	}
	_, err = a.out.Write(out.Bytes())
	return err
}

// plainValue undoes the variants of D-Bus.
func plainValue(v any) any {
	switch v := v.(type) {
	case godbus.Variant:
		return plainValue(v.Value())
	case map[string]godbus.Variant:
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[key] = plainValue(value)
		}
		return m
	case []map[string]godbus.Variant:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = plainValue(value)
		}
		return list
	case []godbus.Variant:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = plainValue(value)
		}
		return list
	}
	return v
}

// A table is what people get: columns under upper-case heads.
type table struct{ w *tabwriter.Writer }

func (a *app) table(heads ...string) *table {
	t := &table{tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
	if len(heads) > 0 {
		fmt.Fprintln(t.w, strings.Join(heads, "\t"))
	}
	return t
}

func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, printable(fmt.Sprint(c)))
	}
	fmt.Fprintln(t.w)
}

func (t *table) end() error { return t.w.Flush() }

// printable keeps what others have named from driving the terminal or from
// breaking a table.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) {
			return '?'
		}
		return c
	}, s)
}

// harmless is printable for a text of several lines: the reason for a failure
// may be what a guest said last.
func harmless(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '\n' || c == '\t' {
			return c
		}
		return []rune(printable(string(c)))[0]
	}, s)
}

// bytesWord says a number of bytes in the unit that people would choose.
func bytesWord(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 || value == float64(uint64(value)) {
		return fmt.Sprintf("%d %s", uint64(value), units[unit])
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
