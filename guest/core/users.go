package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// DefaultUID is the user of a VM unless another is asked for.
const DefaultUID = 1000

// maxName is how long useradd(8) lets a name be.
const maxName = 32

var userName = regexp.MustCompile(`^[a-z][-a-z0-9_]*\$?$`)

// A UserSpec is a user who is to exist.
type UserSpec struct {
	Name   string
	UID    uint32
	Groups []string // besides the user's own; they must exist
}

// Validate refuses what is no user, and root.
func (u UserSpec) Validate() error {
	if len(u.Name) > maxName || !userName.MatchString(u.Name) {
		return fmt.Errorf("%q cannot be a user's name: want a small letter, then small letters, digits, - and _, %d in all", u.Name, maxName)
	}
	if u.UID == 0 {
		return fmt.Errorf("the uid of %s is 0, which is root's", u.Name)
	}
	if u.UID == 1<<32-1 || u.UID == 1<<16-1 {
		return fmt.Errorf("the uid %d of %s stands for nobody", u.UID, u.Name)
	}
	for _, g := range u.Groups {
		if len(g) > maxName || !userName.MatchString(g) {
			return fmt.Errorf("%q cannot be a group's name", g)
		}
	}
	return nil
}

// SetUpUser sees to it that there is a user with this uid below root, which is
// empty for the machine's own, and that the user is in the groups. A user who
// has the uid already stays as he is called; his name is returned. Whatever is
// refused changes nothing.
func SetUpUser(ctx context.Context, root string, u UserSpec) (string, error) {
	if err := u.Validate(); err != nil {
		return "", err
	}
	unlock, err := lockAccounts(ctx, root)
	if err != nil {
		return "", err
	}
	defer unlock()
	a, err := readAccounts(root)
	if err != nil {
		return "", err
	}
	have := a.passwd.find(2, strconv.FormatUint(uint64(u.UID), 10))
	name := u.Name
	switch {
	case have != nil:
		name = have[0]
	case a.passwd.find(0, name) != nil:
		return "", fmt.Errorf("there is a user %s already, with the uid %s instead of %d", name, a.passwd.find(0, name)[2], u.UID)
	}
	var gid uint32
	if have == nil {
		gid = a.addUser(root, u)
	}
	for _, g := range u.Groups {
		if err := a.join(name, g); err != nil {
			return "", err
		}
	}
	if err := a.write(); err != nil {
		return "", err
	}
	if have == nil {
		if err := makeHome(root, u, gid); err != nil {
			return "", fmt.Errorf("there is a user %s now, who has no home: %w", name, err)
		}
	}
	return name, linger(root, name)
}

func homeOf(u UserSpec) string { return "/home/" + u.Name }

// makeHome makes the user's home with what /etc/skel holds. A directory that
// is there is somebody's and stays as it is.
func makeHome(root string, u UserSpec, gid uint32) error {
	if err := os.MkdirAll(root+"/home", 0o755); err != nil {
		return err
	}
	home := root + homeOf(u)
	if err := os.Mkdir(home, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	skel := root + "/etc/skel"
	if _, err := os.Stat(skel); err == nil {
		if err := os.CopyFS(home, os.DirFS(skel)); err != nil {
			return err
		}
	}
	return filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(u.UID), int(gid))
	})
}

// linger lets the user's own services run without a session, where there is a
// systemd to run them.
func linger(root, name string) error {
	if _, err := os.Stat(root + "/var/lib/systemd"); err != nil {
		return nil
	}
	dir := root + "/var/lib/systemd/linger"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
