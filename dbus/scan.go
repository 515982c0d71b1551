package dbus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A source yields bytes in order. take's answer holds until the next call.
type source interface {
	take(n int) ([]byte, error)
	skip(n int) error
}

// memory is a source over a buffered message.
type memory struct{ b []byte }

func (m *memory) take(n int) ([]byte, error) {
	if n > len(m.b) {
		return nil, io.ErrUnexpectedEOF
	}
	b := m.b[:n]
	m.b = m.b[n:]
	return b, nil
}

func (m *memory) skip(n int) error {
	_, err := m.take(n)
	return err
}

// stream is a source over a message that is too large to be buffered.
type stream struct{ r *bufio.Reader }

func (s stream) take(n int) ([]byte, error) {
	b, err := s.r.Peek(n)
	if err == nil {
		_, err = s.r.Discard(n)
	}
	return b, err
}

func (s stream) skip(n int) error {
	_, err := s.r.Discard(n)
	return err
}

// scanner reads an array of header fields. It keeps a few short strings and
// never recurses, whatever the sender wrote.
type scanner struct {
	src   source
	order binary.ByteOrder
	pos   int // modulo 8 that in the message, which is what alignment needs
	left  int
	seen  uint16 // a bit per known field
}

func (s *scanner) take(n int) ([]byte, error) {
	if n < 0 || n > s.left {
		return nil, io.ErrUnexpectedEOF
	}
	b, err := s.src.take(n)
	s.pos += n
	s.left -= n
	return b, err
}

func (s *scanner) skip(n int) error {
	if n < 0 || n > s.left {
		return io.ErrUnexpectedEOF
	}
	s.pos += n
	s.left -= n
	return s.src.skip(n)
}

func (s *scanner) align(n int) error { return s.skip(-s.pos & (n - 1)) }

func (s *scanner) byte() (byte, error) {
	b, err := s.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

func (s *scanner) uint32() (uint32, error) {
	if err := s.align(4); err != nil {
		return 0, err
	}
	b, err := s.take(4)
	if err != nil {
		return 0, err
	}
	return s.order.Uint32(b), nil
}

// length reads the length of an array or a string.
func (s *scanner) length() (int, error) {
	n, err := s.uint32()
	if err == nil && n > maxArray {
		err = fmt.Errorf("a length of %d bytes", n)
	}
	return int(n), err
}

func (s *scanner) string() (string, error) {
	n, err := s.length()
	if err != nil {
		return "", err
	}
	b, err := s.take(min(n, maxString))
	if err != nil {
		return "", err
	}
	kept := string(b)
	return kept, s.skip(n - len(kept) + 1)
}

func (s *scanner) signature() (string, error) {
	n, err := s.byte()
	if err != nil {
		return "", err
	}
	b, err := s.take(int(n) + 1)
	if err != nil {
		return "", err
	}
	if b[n] != 0 {
		return "", errors.New("a signature without its end")
	}
	return string(b[:n]), nil
}

// skipVariant skips a variant's value of type sig.
func (s *scanner) skipVariant(sig string) error {
	if rest, err := afterType(sig); err != nil || rest != "" {
		return fmt.Errorf("a variant of type %q", sig)
	}
	// What is still to be skipped: the signature's rest, above it that of
	// each variant inside.
	todo := []string{sig}
	for len(todo) > 0 {
		top := &todo[len(todo)-1]
		if *top == "" {
			todo = todo[:len(todo)-1]
			continue
		}
		if (*top)[0] == 'v' {
			*top = (*top)[1:]
			inner, err := s.signature()
			if err != nil {
				return err
			}
			if rest, err := afterType(inner); err != nil || rest != "" || len(todo) == maxNesting {
				return fmt.Errorf("a variant of type %q", inner)
			}
			todo = append(todo, inner)
			continue
		}
		rest, err := s.skipOne(*top)
		if err != nil {
			return err
		}
		*top = rest
	}
	return nil
}

// skipOne skips the value of sig's first type other than a variant, or enters
// or leaves a struct, and returns the signature's rest.
func (s *scanner) skipOne(sig string) (string, error) {
	rest := sig[1:]
	switch c := sig[0]; c {
	case 'y':
		return rest, s.skip(1)
	case 'n', 'q', 'b', 'i', 'u', 'h', 'x', 't', 'd':
		size := alignment(c)
		if err := s.align(size); err != nil {
			return "", err
		}
		return rest, s.skip(size)
	case 's', 'o':
		n, err := s.length()
		if err != nil {
			return "", err
		}
		return rest, s.skip(n + 1)
	case 'g':
		_, err := s.signature()
		return rest, err
	case '(':
		return rest, s.align(8)
	case ')':
		return rest, nil
	case 'a':
		n, err := s.length()
		if err != nil {
			return "", err
		}
		if err := s.align(alignment(rest[0])); err != nil {
			return "", err
		}
		if err := s.skip(n); err != nil {
			return "", err
		}
		return afterType(sig)
	}
	return "", fmt.Errorf("type code %q", sig[0])
}

// alignment is that of the type that begins with c.
func alignment(c byte) int {
	switch c {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// afterType returns what follows the first complete type in sig.
func afterType(sig string) (string, error) {
	i := 0
	for i < len(sig) && sig[i] == 'a' {
		i++
	}
	depth := 0
	for ; i < len(sig); i++ {
		switch c := sig[i]; {
		case c == '(' || c == '{':
			depth++
		case c == ')' || c == '}':
			depth--
		case !strings.ContainsRune("ybnqiuxtdsogvha", rune(c)):
			return "", fmt.Errorf("type code %q", c)
		}
		if depth < 0 {
			break
		}
		if depth == 0 {
			return sig[i+1:], nil
		}
	}
	return "", fmt.Errorf("an incomplete type %q", sig)
}
