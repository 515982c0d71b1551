package vmc

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A form is a way to write the bytes of a message for, or by, another tool.
type form string

const (
	formBusctl   form = "busctl"
	formDBusSend form = "dbus-send"
	formGDBus    form = "gdbus"
	formHex      form = "hex"
	formBase64   form = "base64"
	formRaw      form = "raw"
)

// write gives bytes the form in which a tool takes them on its command line.
func (f form) write(b []byte) string {
	switch f {
	case formDBusSend:
		return "array:byte:" + join(b, ",", "0x%02x")
	case formGDBus:
		if len(b) == 0 {
			return "@ay []"
		}
		return "[byte " + join(b, ",", "0x%02x") + "]"
	case formHex:
		return hex.EncodeToString(b)
	case formBase64:
		return base64.StdEncoding.EncodeToString(b)
	case formRaw:
		return string(b)
	}
	words := "ay " + strconv.Itoa(len(b))
	if len(b) > 0 {
		words += " " + join(b, " ", "%d")
	}
	return words
}

func join(b []byte, separator, format string) string {
	var s strings.Builder
	for i, x := range b {
		if i > 0 {
			s.WriteString(separator)
		}
		fmt.Fprintf(&s, format, x)
	}
	return s.String()
}

// errNothing is what an empty input is.
var errNothing = errors.New("there is nothing to decode: the tool before has printed no reply; did the call fail?")

// readBytes reads what a tool printed: in the form given, or in one that it
// finds out itself.
func readBytes(input string, f form) ([]byte, error) {
	text := strings.TrimSpace(input)
	switch f {
	case formRaw:
		return []byte(input), nil
	case formHex:
		return readHex(text)
	case formBase64:
		return readBase64(text)
	}
	switch {
	case text == "":
		return nil, errNothing
	case strings.ContainsFunc(text, isBinary) || !utf8.ValidString(text):
		return []byte(input), nil // the bytes themselves
	case text == "ay", strings.HasPrefix(text, "ay "):
		return readBusctl(text)
	case strings.HasPrefix(text, "{"):
		return readBusctlJSON(text)
	case strings.HasPrefix(text, "MESSAGE ") || strings.Contains(text, `ARRAY "y" {`):
		return readBusctlVerbose(text)
	case strings.HasPrefix(text, "array:byte:"):
		return readNumbers(strings.TrimPrefix(text, "array:byte:"), ",")
	case strings.HasPrefix(text, "array ["), strings.HasPrefix(text, "array of bytes"), strings.Contains(text, "reply_serial="),
		strings.HasPrefix(text, "signal "), strings.HasPrefix(text, "method "):
		return readDBusSend(text)
	case strings.HasPrefix(text, "Error "):
		return nil, fmt.Errorf("the call has failed: %s", text)
	}
	if b, ok, err := readGDBus(text); ok {
		return b, err
	}
	if b, err := readHex(text); err == nil {
		return b, nil
	}
	if b, err := readBase64(text); err == nil {
		return b, nil
	}
	return nil, fmt.Errorf("%s is no reply as busctl, dbus-send or gdbus print it, and neither hex nor base64", abbreviated(text))
}

// isBinary says whether a character is one that no tool prints.
func isBinary(c rune) bool { return c < ' ' && c != '\n' && c != '\r' && c != '\t' || c == 0x7f }

func abbreviated(text string) string {
	if len(text) > 60 {
		text = strings.ToValidUTF8(text[:60], "") + "..."
	}
	return strconv.Quote(text)
}

func readHex(text string) ([]byte, error) {
	return hex.DecodeString(strings.Join(strings.Fields(text), ""))
}

// readBase64 takes both alphabets, with and without padding.
func readBase64(text string) ([]byte, error) {
	text = strings.TrimRight(strings.Join(strings.Fields(text), ""), "=")
	if strings.ContainsAny(text, "-_") {
		return base64.RawURLEncoding.DecodeString(text)
	}
	return base64.RawStdEncoding.DecodeString(text)
}

// readNumbers reads bytes as numbers, decimal or 0x.
func readNumbers(text, separator string) ([]byte, error) {
	var b []byte
	for word := range strings.SplitSeq(text, separator) {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		n, err := strconv.ParseUint(word, 0, 8)
		if err != nil {
			return nil, fmt.Errorf("%q is no byte", word)
		}
		b = append(b, byte(n))
	}
	return b, nil
}

// readBusctl reads "ay LENGTH BYTE...".
func readBusctl(text string) ([]byte, error) {
	words := strings.Fields(text)
	if len(words) < 2 {
		return nil, errors.New("after ay comes the number of bytes")
	}
	n, err := strconv.ParseUint(words[1], 10, 31)
	if err != nil {
		return nil, fmt.Errorf("after ay comes the number of bytes, not %q", words[1])
	}
	b, err := readNumbers(strings.Join(words[2:], " "), " ")
	if err == nil && uint64(len(b)) != n {
		return nil, fmt.Errorf("ay %d, and then %d bytes: something was cut off or added", n, len(b))
	}
	return b, err
}

// readBusctlJSON reads what busctl --json prints, of a call or of monitor.
func readBusctlJSON(text string) ([]byte, error) {
	type body struct {
		Type string            `json:"type"`
		Data []json.RawMessage `json:"data"`
	}
	var answer struct {
		body
		Payload *body `json:"payload"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return nil, fmt.Errorf("no JSON of busctl: %w", err)
	}
	reply := answer.body
	if answer.Payload != nil {
		reply = *answer.Payload
	}
	if reply.Type != "ay" || len(reply.Data) != 1 {
		return nil, fmt.Errorf("this JSON of busctl has the type %q, not ay", reply.Type)
	}
	var numbers []number8
	if err := json.Unmarshal(reply.Data[0], &numbers); err != nil {
		return nil, fmt.Errorf("no JSON of busctl: %w", err)
	}
	b := make([]byte, len(numbers))
	for i, n := range numbers {
		b[i] = byte(n)
	}
	return b, nil
}

// number8 is a byte of a JSON list of numbers; encoding/json takes []byte for
// base64.
type number8 uint8

var busctlByte = regexp.MustCompile(`^BYTE (\d+);$`)

// readBusctlVerbose reads what busctl call --verbose and busctl monitor print.
func readBusctlVerbose(text string) ([]byte, error) {
	_, list, ok := strings.Cut(text, `ARRAY "y" {`)
	if !ok {
		return nil, errors.New("this message of busctl holds no bytes")
	}
	var b []byte
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "};" {
			if strings.Count(text, `ARRAY "y" {`) > 1 {
				return nil, errors.New("this output of busctl holds more than one message")
			}
			return b, nil
		}
		m := busctlByte.FindStringSubmatch(line)
		if m == nil {
			if line == "" {
				continue
			}
			return nil, fmt.Errorf("among the bytes of busctl's message: %s", abbreviated(line))
		}
		n, err := strconv.ParseUint(m[1], 10, 8)
		if err != nil {
			return nil, fmt.Errorf("%q is no byte", m[1])
		}
		b = append(b, byte(n))
	}
	return nil, errors.New("this message of busctl was cut off")
}

// readDBusSend reads what dbus-send --print-reply and dbus-monitor print.
// Bytes that are all printable come as text, which is not escaped but ends
// with its line; a 0 at its end is written apart.
func readDBusSend(text string) ([]byte, error) {
	at := strings.Index(text, "array ")
	if at < 0 {
		return nil, errors.New("this reply of dbus-send holds no bytes; has the method a result?")
	}
	text = text[at:]
	if rest, ok := strings.CutPrefix(text, `array of bytes "`); ok {
		line, rest, _ := strings.Cut(rest, "\n")
		if strings.TrimSpace(rest) != "" {
			return nil, errors.New("this output of dbus-send holds more than one reply")
		}
		if s, ok := strings.CutSuffix(line, `" + \0`); ok {
			return append([]byte(s), 0), nil
		}
		if s, ok := strings.CutSuffix(line, `"`); ok {
			return []byte(s), nil
		}
		return nil, errors.New("this reply of dbus-send was cut off")
	}
	_, list, ok := strings.Cut(text, "[")
	if !ok {
		return nil, errors.New("this reply of dbus-send was cut off")
	}
	list, rest, ok := strings.Cut(list, "]")
	if !ok {
		return nil, errors.New("this reply of dbus-send was cut off")
	}
	if strings.TrimSpace(rest) != "" {
		return nil, errors.New("this output of dbus-send holds more than one reply")
	}
	b, err := readHex(list)
	if err != nil {
		return nil, fmt.Errorf("the bytes of dbus-send's reply: %w", err)
	}
	return b, nil
}
