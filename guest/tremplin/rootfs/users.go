package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxAccounts = 4 << 20 // of one file of accounts
	maxSkel     = 256     // files, of as many directories
	maxSkelFile = 1 << 20
	lockPause   = 20 * time.Millisecond
	lockWait    = 15 * time.Second
)

// ErrNoUser says that a container has no such user.
var ErrNoUser = errors.New("the container has no user of this uid")

// An Account is a user and a group of one name and number.
type Account struct {
	Name string
	ID   uint32
}

// Users are those whom a container is to have.
type Users struct {
	Main   Account   // a person
	Groups []string  // of the person, where there are any such
	Fixed  []Account // who cannot log in
	Shared []string  // groups of the person that must be
}

// A name that is fit to be part of paths and of messages.
var goodName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$`)

// FindUser returns the name and the home of a user.
func (r *Root) FindUser(uid uint32) (name, home string, err error) {
	data, err := r.ReadFile("/etc/passwd", maxAccounts)
	if err != nil {
		return "", "", err
	}
	l := parseTable(data).find(2, itoa(uid))
	if len(l) < 6 || !goodName.MatchString(l[0]) {
		return "", "", fmt.Errorf("%w: %d", ErrNoUser, uid)
	}
	return l[0], strings.ToValidUTF8(l[5][:min(len(l[5]), 4096)], "?"), nil
}

// SetUpUser sees to it that there are these users. A person who has the uid
// already stays as he is called; his name is returned, and that there was one.
func (r *Root) SetUpUser(ctx context.Context, u Users) (name string, there bool, err error) {
	unlock, err := r.lockAccounts(ctx)
	if err != nil {
		return "", false, err
	}
	defer unlock()
	t := map[string]*table{}
	for _, file := range []string{"passwd", "group", "shadow", "gshadow"} {
		data, err := r.ReadFile("/etc/"+file, maxAccounts)
		switch {
		case err == nil:
			t[file] = parseTable(data)
		case errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(file, "shadow"):
			t[file] = nil // as a container may have it
		default:
			return "", false, fmt.Errorf("the accounts cannot be read: %w", err)
		}
	}
	a := accounts{passwd: t["passwd"], group: t["group"], shadow: t["shadow"], gshadow: t["gshadow"]}
	shell := "/bin/bash"
	if !r.Exists(shell) {
		shell = "/bin/sh"
	}
	name, gid, there, err := a.setUp(u, shell)
	if err != nil {
		return "", there, err
	}
	// passwd last: a user is there when all of him is.
	for _, file := range []string{"gshadow", "group", "shadow", "passwd"} {
		if t[file] == nil || !t[file].changed {
			continue
		}
		err := r.Update("/etc/"+file, maxAccounts, func([]byte) ([]byte, error) { return t[file].bytes(), nil })
		if err != nil {
			return name, there, fmt.Errorf("the accounts cannot be written: %w", err)
		}
	}
	if !there {
		if err := r.makeHome("/home/"+name, u.Main.ID, gid); err != nil {
			return name, there, fmt.Errorf("the user %s has no home: %w", name, err)
		}
	}
	return name, there, r.linger(name)
}

// linger lets the user's services run without a session.
func (r *Root) linger(name string) error {
	dir := ""
	for _, part := range []string{"/var", "/lib", "/systemd", "/linger"} {
		dir += part
		if _, err := r.Mkdir(dir, 0o755, 0, 0); err != nil {
			return err
		}
	}
	return r.WriteFile(path.Join(dir, name), nil, 0o644, 0, 0)
}

// makeHome makes a home with what /etc/skel holds of files. A home that is
// there is somebody's and stays as it is.
func (r *Root) makeHome(home string, uid, gid uint32) error {
	if _, err := r.Mkdir("/home", 0o755, 0, 0); err != nil {
		return err
	}
	made, err := r.Mkdir(home, 0o700, uid, gid)
	if err != nil || !made {
		return err
	}
	entries, err := r.ReadDir("/etc/skel", maxSkel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		from, to := "/etc/skel/"+e.Name(), home+"/"+e.Name()
		if !e.Type().IsRegular() {
			continue
		}
		data, err := r.ReadFile(from, maxSkelFile)
		if err == nil {
			err = r.WriteFile(to, data, 0o644, uid, gid)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// lockAccounts takes the lock of lckpwdf(3), which programs in the container
// hold that change accounts.
func (r *Root) lockAccounts(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	const name = "/etc/.pwd.lock"
	f, _, err := r.openRegular("lock", name, unix.O_RDWR|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		if err = r.WriteFile(name, nil, 0o600, 0, 0); err == nil {
			f, _, err = r.openRegular("lock", name, unix.O_RDWR|unix.O_NOFOLLOW)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the accounts cannot be locked: %w", err)
	}
	retry := time.NewTicker(lockPause)
	defer retry.Stop()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("the accounts are being changed by a program in the container: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// A table is one file of passwd(5) and its kin.
type table struct {
	lines   [][]string
	changed bool
}

func parseTable(data []byte) *table {
	t := &table{}
	for line := range strings.Lines(string(data)) {
		t.lines = append(t.lines, strings.Split(strings.TrimSuffix(line, "\n"), ":"))
	}
	return t
}

func (t *table) bytes() []byte {
	var b strings.Builder
	for _, l := range t.lines {
		b.WriteString(strings.Join(l, ":"))
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// find returns the first line with this value in a field.
func (t *table) find(field int, value string) []string {
	if t == nil {
		return nil
	}
	for _, l := range t.lines {
		if len(l) > max(field, 2) && l[field] == value {
			return l
		}
	}
	return nil
}

func (t *table) add(fields ...string) {
	if t != nil && t.find(0, fields[0]) == nil {
		t.lines = append(t.lines, fields)
		t.changed = true
	}
}

// join adds a name to a group, if there is such a group.
func (t *table) join(group, name string) {
	l := t.find(0, group)
	if len(l) != 4 {
		return
	}
	members := strings.FieldsFunc(l[3], func(r rune) bool { return r == ',' })
	if !slices.Contains(members, name) {
		l[3] = strings.Join(append(members, name), ",")
		t.changed = true
	}
}

// accounts are the files that together make users.
type accounts struct{ passwd, group, shadow, gshadow *table }

func (a accounts) setUp(u Users, shell string) (name string, gid uint32, there bool, err error) {
	name = u.Main.Name
	if l := a.passwd.find(2, itoa(u.Main.ID)); l != nil {
		there, name = true, l[0]
		if !goodName.MatchString(name) {
			return "", 0, true, fmt.Errorf("the user %d is called %.80q, which cannot be", u.Main.ID, name)
		}
	} else if l := a.passwd.find(0, name); l != nil {
		return "", 0, false, fmt.Errorf("there is a user %s already, with the uid %.20s instead of %d", name, l[2], u.Main.ID)
	} else {
		gid = a.addGroup(u.Main)
		a.addUser(u.Main, gid, "!", "/home/"+name, shell)
	}
	for _, f := range u.Fixed {
		if a.passwd.find(2, itoa(f.ID)) != nil || a.passwd.find(0, f.Name) != nil {
			continue
		}
		a.addUser(f, a.addGroup(f), "*", "/nonexistent", "/usr/sbin/nologin")
	}
	for _, g := range slices.Concat(u.Groups, u.Shared) {
		a.group.join(g, name)
		if a.gshadow != nil {
			a.gshadow.join(g, name)
		}
	}
	return name, gid, there, nil
}

func (a accounts) addUser(u Account, gid uint32, password, home, shell string) {
	days := strconv.FormatInt(time.Now().Unix()/(24*3600), 10)
	a.shadow.add(u.Name, password, days, "0", "99999", "7", "", "", "")
	a.passwd.add(u.Name, "x", itoa(u.ID), itoa(gid), "", home, shell)
}

// addGroup makes a user's own group, with his number if that is free.
func (a accounts) addGroup(u Account) uint32 {
	if l := a.group.find(0, u.Name); l != nil {
		if gid, err := strconv.ParseUint(l[2], 10, 32); err == nil && gid != 0 {
			return uint32(gid)
		}
	}
	gid := u.ID
	for a.group.find(2, itoa(gid)) != nil {
		gid++
	}
	a.group.add(u.Name, "x", itoa(gid), "")
	a.gshadow.add(u.Name, "!", "", "")
	return gid
}

func itoa(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
