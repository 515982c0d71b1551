package vshd

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// defaultUser is whom a session without a user runs as, if there is such a
// user; else it is root.
const defaultUser = "chronos"

// An account is a user of the guest.
type account struct {
	name        string
	uid, gid    uint32
	groups      []uint32 // supplementary
	home, shell string
}

// lookupUser finds a user in the passwd and group files. It reads them itself,
// since os/user knows no shells.
func (s *Server) lookupUser(name string) (*account, error) {
	wanted := []func(*account) bool{named(name)}
	missing := fmt.Errorf("no user %q in %s", name, s.place)
	switch {
	case name != "":
	case s.container:
		uid := uint32(os.Geteuid())
		wanted = []func(*account) bool{func(a *account) bool { return a.uid == uid }}
		missing = fmt.Errorf("no user with uid %d in %s", uid, s.place)
	default:
		wanted = []func(*account) bool{named(defaultUser), named("root")}
		missing = fmt.Errorf("no user %q in %s", "root", s.place)
	}
	for _, is := range wanted {
		a, err := findPasswd(filepath.Join(s.etc, "passwd"), is)
		if err != nil {
			return nil, fmt.Errorf("look up user %q: %w", name, err)
		}
		if a == nil {
			continue
		}
		if a.groups, err = groupsOf(filepath.Join(s.etc, "group"), a); err != nil {
			return nil, fmt.Errorf("look up the groups of user %q: %w", a.name, err)
		}
		return a, nil
	}
	return nil, missing
}

func named(name string) func(*account) bool {
	return func(a *account) bool { return a.name == name }
}

// findPasswd returns nil when the file has no such user.
func findPasswd(path string, is func(*account) bool) (*account, error) {
	var found *account
	err := eachEntry(path, 7, func(f []string) bool {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return true
		}
		a := &account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
		if !is(a) {
			return true
		}
		found = a
		return false
	})
	if found != nil {
		if found.home == "" {
			found.home = "/"
		}
		if found.shell == "" {
			found.shell = "/bin/sh"
		}
	}
	return found, err
}

func groupsOf(path string, a *account) ([]uint32, error) {
	groups := []uint32{a.gid}
	err := eachEntry(path, 4, func(f []string) bool {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil || !slices.Contains(strings.Split(f[3], ","), a.name) {
			return true
		}
		if !slices.Contains(groups, uint32(gid)) {
			groups = append(groups, uint32(gid))
		}
		return true
	})
	if os.IsNotExist(err) {
		return groups, nil
	}
	return groups, err
}

// eachEntry calls f with the fields of every line that has as many, until f
// returns false.
func eachEntry(path string, fields int, f func([]string) bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		entry := strings.Split(lines.Text(), ":")
		if len(entry) == fields && entry[0] != "" && !f(entry) {
			return nil
		}
	}
	return lines.Err()
}
