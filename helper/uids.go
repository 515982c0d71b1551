package helper

import (
	"fmt"
	"strconv"
	"strings"
)

// A UIDRange is a range of uids, both ends in it. The zero range has none.
type UIDRange struct{ First, Last uint32 }

// ReservedUIDs are those that systemd gives to the processes of services, and
// nobody.
var ReservedUIDs = UIDRange{61184, 65535}

// Contains says whether a uid is in the range; root is in none.
func (r UIDRange) Contains(uid uint32) bool { return uid != 0 && r.First <= uid && uid <= r.Last }

// MarshalText writes the range as FIRST-LAST, or nothing.
func (r UIDRange) MarshalText() ([]byte, error) {
	if r == (UIDRange{}) {
		return nil, nil
	}
	return fmt.Appendf(nil, "%d-%d", r.First, r.Last), nil
}

// UnmarshalText reads what MarshalText writes.
func (r *UIDRange) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = UIDRange{}
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	f, ferr := strconv.ParseUint(first, 10, 32)
	l, lerr := strconv.ParseUint(last, 10, 32)
	if !ok || ferr != nil || lerr != nil || f == 0 || f > l {
		return fmt.Errorf("%q is no range of uids; write FIRST-LAST, or nothing", b)
	}
	*r = UIDRange{uint32(f), uint32(l)}
	return nil
}
