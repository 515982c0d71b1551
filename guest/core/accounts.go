package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// lockAccounts takes the lock of lckpwdf(3), which programs that change
// accounts hold.
func lockAccounts(ctx context.Context, root string) (unlock func(), err error) {
	f, err := os.OpenFile(root+"/etc/.pwd.lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the accounts: %w", err)
	}
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			f.Close()
			return nil, fmt.Errorf("cannot lock the accounts: %w", err)
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("the accounts are being changed by another program: %w", ctx.Err())
		}
	}
}

// An accountFile is one of the files of passwd(5) and its kin: lines of
// fields. Lines that are none stay as they are.
type accountFile struct {
	path    string
	info    fs.FileInfo // nil where there is no such file
	lines   [][]string
	changed bool
}

func readAccountFile(path string, needed bool) (*accountFile, error) {
	a := &accountFile{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !needed {
		return a, nil
	}
	if err == nil {
		a.info, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the accounts: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		a.lines = append(a.lines, strings.Split(strings.TrimSuffix(line, "\n"), ":"))
	}
	return a, nil
}

// find returns the first line with this value in a field.
func (a *accountFile) find(field int, value string) []string {
	for _, l := range a.lines {
		if len(l) > max(field, 2) && l[field] == value {
			return l
		}
	}
	return nil
}

func (a *accountFile) add(fields ...string) {
	if a.info != nil {
		a.lines = append(a.lines, fields)
		a.changed = true
	}
}

// addMember adds a name to the last field of a group's line.
func (a *accountFile) addMember(group, name string) {
	l := a.find(0, group)
	if len(l) != 4 {
		return
	}
	members := strings.FieldsFunc(l[3], func(r rune) bool { return r == ',' })
	if slices.Contains(members, name) {
		return
	}
	l[3] = strings.Join(append(members, name), ",")
	a.changed = true
}

func (a *accountFile) write() error {
	if !a.changed {
		return nil
	}
	var b strings.Builder
	for _, l := range a.lines {
		b.WriteString(strings.Join(l, ":") + "\n")
	}
	// WithExistingPermissions leaves the owner out, which is shadow's group.
	t, err := renameio.NewPendingFile(a.path, renameio.WithPermissions(a.info.Mode().Perm()))
	if err != nil {
		return fmt.Errorf("cannot write the accounts: %w", err)
	}
	defer t.Cleanup()
	st := a.info.Sys().(*syscall.Stat_t)
	_, err = t.WriteString(b.String())
	if err == nil {
		err = t.Chown(int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = t.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("cannot write the accounts: %w", err)
	}
	return nil
}

// accounts are the files that together make users.
type accounts struct{ passwd, shadow, group, gshadow *accountFile }

func readAccounts(root string) (*accounts, error) {
	a := &accounts{}
	for _, f := range []struct {
		to     **accountFile
		name   string
		needed bool
	}{{&a.passwd, "passwd", true}, {&a.group, "group", true}, {&a.shadow, "shadow", false}, {&a.gshadow, "gshadow", false}} {
		var err error
		if *f.to, err = readAccountFile(root+"/etc/"+f.name, f.needed); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// write puts passwd last: a user is there when all of him is.
func (a *accounts) write() error {
	for _, f := range []*accountFile{a.gshadow, a.group, a.shadow, a.passwd} {
		if err := f.write(); err != nil {
			return err
		}
	}
	return nil
}

// addUser adds a user with a group of his own, who cannot log in with any
// password, and returns the group.
func (a *accounts) addUser(root string, u UserSpec) (gid uint32) {
	shell := "/bin/bash"
	if _, err := os.Stat(root + shell); err != nil {
		shell = "/bin/sh"
	}
	gid = a.addGroup(u)
	days := strconv.FormatInt(time.Now().Unix()/(24*3600), 10)
	a.shadow.add(u.Name, "!", days, "0", "99999", "7", "", "", "")
	a.passwd.add(u.Name, "x", strconv.FormatUint(uint64(u.UID), 10), strconv.FormatUint(uint64(gid), 10), "", homeOf(u), shell)
	return gid
}

// addGroup makes the user's own group, with his number if that is free.
func (a *accounts) addGroup(u UserSpec) uint32 {
	if l := a.group.find(0, u.Name); l != nil {
		if gid, err := strconv.ParseUint(l[2], 10, 32); err == nil && gid != 0 {
			return uint32(gid)
		}
	}
	gid := u.UID
	for a.group.find(2, strconv.FormatUint(uint64(gid), 10)) != nil {
		gid = max(gid+1, DefaultUID)
	}
	a.group.add(u.Name, "x", strconv.FormatUint(uint64(gid), 10), "")
	a.gshadow.add(u.Name, "!", "", "")
	return gid
}

func (a *accounts) join(user, group string) error {
	if a.group.find(0, group) == nil {
		return fmt.Errorf("there is no group %s in this VM", group)
	}
	a.group.addMember(group, user)
	a.gshadow.addMember(group, user)
	return nil
}
