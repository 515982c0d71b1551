package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameLen is the longest VM name in bytes; ChromeOS has the same limit.
const MaxNameLen = 60

// ErrName is wrapped by every refusal of a VM name.
var ErrName = errors.New("invalid VM name")

// CheckName accepts a VM name: 1 to 60 bytes of UTF-8 without '/' or control
// characters, other than "." and "..".
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrName)
	case len(name) > MaxNameLen:
		return fmt.Errorf("%w: %d bytes are more than %d", ErrName, len(name), MaxNameLen)
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: it is not UTF-8", ErrName)
	case name == "." || name == "..":
		return fmt.Errorf("%w: %q is a directory", ErrName, name)
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("%w: %q contains a slash", ErrName, name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%w: %q contains a control character", ErrName, name)
	}
	return nil
}

// ErrContainerName is wrapped by every refusal of a container's name.
var ErrContainerName = errors.New("invalid container name")

var containerName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckContainerName accepts what Incus takes for a container's name.
func CheckContainerName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrContainerName)
	case !containerName.MatchString(name):
		return fmt.Errorf("%w: %.80q is not a letter of a-z and then up to 62 of a-z, 0-9 and -, none of them last", ErrContainerName, name)
	}
	return nil
}
