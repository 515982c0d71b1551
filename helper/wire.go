package helper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/seqpacket"
)

var (
	// requests bounds what is asked. The longest one names a path, in four
	// thirds of PATH_MAX, and groups.
	requests = seqpacket.Limits{Bytes: 16 << 10}
	// replies bounds the answers. The longest one is an error, each of whose
	// bytes may take six.
	replies = seqpacket.Limits{Bytes: 32 << 10, Files: 1}
)

// maxError is the longest error that is sent, in bytes.
const maxError = 4 << 10

// A request names a verb and what the verb needs to know.
type request struct {
	Verb string          `json:"verb"`
	Args json.RawMessage `json:"args"`
}

// A reply is empty for a success.
type reply struct {
	Error string `json:"error,omitempty"`
	// Errno and Kind are what a program can go by.
	Errno syscall.Errno `json:"errno,omitempty"`
	Kind  errorKind     `json:"kind,omitempty"`
}

// An errorKind is a failure that has no error number.
type errorKind string

const (
	kindIrregular errorKind = "irregular" // policy.ErrNotRegular
	kindDenied    errorKind = "denied"    // ErrRefused
	kindBusy      errorKind = "busy"      // ErrBusy
)

var (
	// ErrRefused is what the helper does for nobody.
	ErrRefused = errors.New("the privileged helper refuses it")
	// ErrBusy says that too much of it is going on.
	ErrBusy = errors.New("too much of it is going on; try again later")
)

var kinds = map[errorKind]error{kindIrregular: policy.ErrNotRegular, kindDenied: ErrRefused, kindBusy: ErrBusy}

// encode writes a request; decode takes no other spelling of it.
func encode(verb string, args any) ([]byte, error) {
	a, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	return json.Marshal(request{Verb: verb, Args: a})
}

// decode reads JSON that json.Marshal has made of a value of the same type.
// Fields that are unknown, twice there or spelled otherwise are refused: two
// readers of a request must not understand two things.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("no request of ours: %w", err)
	}
	again, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("no request of ours: %w", err)
	}
	if !bytes.Equal(b, again) {
		return errors.New("no request of ours: it is not in the form in which ours are")
	}
	return nil
}

// failure makes a reply of an error.
func failure(err error) reply {
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError] + "..."
	}
	r := reply{Error: text}
	for kind, e := range kinds {
		if errors.Is(err, e) {
			r.Kind = kind
		}
	}
	errors.As(err, &r.Errno)
	return r
}

// err makes an error of a reply again.
func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	e := &remoteError{text: r.Error}
	if k := kinds[r.Kind]; k != nil {
		e.is = append(e.is, k)
	}
	if r.Errno != 0 {
		e.is = append(e.is, r.Errno)
	}
	return e
}

// A remoteError is an error of the helper's, with what it is for errors.Is.
type remoteError struct {
	text string
	is   []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.is }

func encodeReply(r reply) ([]byte, error) { return json.Marshal(r) }
