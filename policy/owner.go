package policy

import (
	"errors"
	"fmt"
	"os/user"
	"regexp"
	"strconv"
)

// ErrDenied is wrapped by every refusal for lack of a right; on the bus it is
// org.freedesktop.DBus.Error.AccessDenied.
var ErrDenied = errors.New("access denied")

// ErrOwner is wrapped by every refusal of an owner word that is no owner word.
var ErrOwner = errors.New("invalid owner id")

// A Caller is the process on the other side of a connection, as the bus
// daemon reports it.
type Caller struct {
	// Name is the unique name on the bus, such as ":1.42".
	Name string
	UID  uint32
	// Groups are the groups of the process where the bus knows them.
	Groups []uint32
}

// An Owner says whose VMs a request is about: the user and the label inside
// the user's own name space.
type Owner struct {
	UID uint32
	// Label is empty for the user's own plain name space.
	Label string
	// Word is what the caller wrote, the decimal uid where that was empty.
	// Replies and signals carry it.
	Word string
	// All is set when the caller wrote nothing: listings then cover all of
	// the user's labels.
	All bool
}

// A Subject is a caller together with the owner it named.
type Subject struct {
	Caller Caller
	Owner  Owner
	// Everybody is set when a call that names no owner is about everybody's
	// VMs: uid 0's are.
	Everybody bool
}

var (
	digits = regexp.MustCompile(`^[0-9]{1,10}$`)
	label  = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)
)

// A UserLookup tells whether a uid belongs to a user of this machine, or to one
// who was removed and left something.
type UserLookup func(uid uint32) bool

// UserExists asks the system's user database.
func UserExists(uid uint32) bool {
	_, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	return err == nil
}

// ResolveOwner reads the owner word of a request. Empty, or the caller's own
// uid, is the caller. Up to ten digits are always a uid: another user's needs
// the administrator's right, which admin is asked for only then and refuses
// with an error. Whether that user exists matters after that, so that nobody
// else learns from the answer who has an account. Any other word of
// [0-9A-Za-z_-]{1,64} is a label inside the caller's own name space.
func ResolveOwner(c Caller, word string, admin func() error, exists UserLookup) (Owner, error) {
	own := strconv.FormatUint(uint64(c.UID), 10)
	switch {
	case word == "":
		return Owner{UID: c.UID, Word: own, All: true}, nil
	case word == own:
		return Owner{UID: c.UID, Word: own}, nil
	case digits.MatchString(word):
		n, err := strconv.ParseUint(word, 10, 32)
		if err == nil && uint32(n) == c.UID {
			return Owner{UID: c.UID, Word: word}, nil
		}
		if denied := admin(); denied != nil {
			return Owner{}, fmt.Errorf("owner %q is not the caller (uid %d): %w", word, c.UID, denied)
		}
		if err != nil || !exists(uint32(n)) {
			return Owner{}, fmt.Errorf("%w: there is no user with uid %s, nor anything that one has left", ErrDenied, word)
		}
		return Owner{UID: uint32(n), Word: word}, nil
	case label.MatchString(word):
		return Owner{UID: c.UID, Label: word, Word: word}, nil
	}
	return Owner{}, fmt.Errorf("%w: must be empty, a uid, or 1 to 64 of the characters 0-9 A-Z a-z _ -", ErrOwner)
}
