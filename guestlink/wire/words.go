package wire

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxWords is how many characters of a guest's error are passed on.
const maxWords = 500

// Explain names the call that failed and keeps the guest's words.
func Explain(what string, err error) error {
	if err == nil {
		return nil
	}
	switch s, _ := status.FromError(err); s.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: the guest's agent did not answer in time", what)
	case codes.Canceled:
		return fmt.Errorf("%s: given up", what)
	case codes.Unavailable:
		return fmt.Errorf("%s: the guest's agent cannot be reached: %s", what, Words(s.Message()))
	case codes.Unimplemented:
		return fmt.Errorf("%s: %w: %s", what, errors.ErrUnsupported, Words(s.Message()))
	default:
		return fmt.Errorf("%s: the guest says: %s", what, Words(s.Message()))
	}
}

// Words makes a guest's text fit for an error message, which ends up on
// terminals and in messages that must be UTF-8.
func Words(s string) string { return Text(s, maxWords) }

// Text is Words of at most that many characters.
func Text(s string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > limit {
			b.WriteString("...")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return b.String()
}
