package helper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
)

// maxGroups is how many groups a process can have, NGROUPS_MAX, cut down to
// what fits a packet.
const maxGroups = 256

// openArgs ask for a file, opened as a user.
type openArgs struct {
	UID uint32 `json:"uid"`
	// Groups are those of the user's process where they are known. It may have
	// given up some of the account's; it never gets others.
	Groups []uint32 `json:"groups,omitempty"`
	// Path is in bytes, because not every name is UTF-8.
	Path []byte      `json:"path"`
	Mode policy.Mode `json:"mode"`
}

func (a *openArgs) audit() []any {
	return []any{"uid", a.UID, "path", string(a.Path), "mode", string(a.Mode)}
}

func (a *openArgs) whose() string { return "uid " + strconv.FormatUint(uint64(a.UID), 10) }

func (a *openArgs) check(s *Server) error {
	switch {
	case a.UID == 0:
		return fmt.Errorf("%w: no file is opened as root", ErrRefused)
	case a.UID < s.MinUID:
		return fmt.Errorf("%w: uid %d belongs to the system (users begin at %d; see --min-uid)", ErrRefused, a.UID, s.MinUID)
	case a.UID == 1<<32-1 || s.ReservedUIDs.Contains(a.UID):
		return fmt.Errorf("%w: uid %d is nobody's (see --reserved-uids)", ErrRefused, a.UID)
	case len(a.Path) == 0 || a.Path[0] != '/' || bytes.IndexByte(a.Path, 0) >= 0:
		return fmt.Errorf("%w: %q is no absolute path", ErrRefused, a.Path)
	case len(a.Path) >= unix.PathMax:
		return fmt.Errorf("%w: the path has %d bytes: %w", ErrRefused, len(a.Path), unix.ENAMETOOLONG)
	case a.Mode != policy.ReadOnly && a.Mode != policy.ReadWrite:
		return fmt.Errorf("%w: there is no mode %q", ErrRefused, a.Mode)
	case len(a.Groups) > maxGroups:
		return fmt.Errorf("%w: %d groups are more than %d", ErrRefused, len(a.Groups), maxGroups)
	}
	return nil
}

func (a *openArgs) run(ctx context.Context, s *Server) (*os.File, error) {
	groups, err := lookupGroups(a.UID)
	if err != nil {
		return nil, fmt.Errorf("open %s as uid %d: %w", a.Path, a.UID, err)
	}
	c := policy.Caller{UID: a.UID, Groups: common(groups, a.Groups)}
	return s.Opener.Open(ctx, c, string(a.Path), a.Mode)
}

// nogroup is the group of those who have none.
const nogroup = 65534

// common returns the groups with which a file is opened, the primary one
// first: those of the account that the user's process has too. Nothing is known
// of a process that has none.
func common(account, process []uint32) []uint32 {
	if len(process) == 0 {
		return account
	}
	var both []uint32
	for _, g := range process {
		if slices.Contains(account, g) {
			both = append(both, g)
		}
	}
	if len(both) == 0 {
		both = []uint32{nogroup}
	}
	return both
}

// lookupGroups asks the user database for a user's groups, the primary one
// first. A uid without an account has nobody's.
func lookupGroups(uid uint32) ([]uint32, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	var unknown user.UnknownUserIdError
	if errors.As(err, &unknown) {
		return []uint32{nogroup}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up the user: %w", err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("look up the groups of %s: %w", u.Username, err)
	}
	var groups []uint32
	for _, id := range append([]string{u.Gid}, ids...) {
		g, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %q of %s: %w", id, u.Username, err)
		}
		if !slices.Contains(groups, uint32(g)) {
			groups = append(groups, uint32(g))
		}
	}
	return groups, nil
}
