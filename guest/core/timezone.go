package core

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

const (
	zoneDir   = "/usr/share/zoneinfo"
	localtime = "/etc/localtime"
	// maxZoneFile bounds what is read of a zone; the longest has 4 KiB.
	maxZoneFile = 64 << 10
)

// Errors of SetTimezone that are the caller's.
var (
	ErrZoneName = errors.New("want a name below " + zoneDir + ", such as Europe/Paris")
	ErrNoZone   = errors.New("there is no such time zone in " + zoneDir + " of this VM; is its package tzdata installed?")
)

var zoneName = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)

// SetTimezone makes a zone the machine's below root, which is empty for the
// machine's own: /etc/localtime becomes a link to the zone's file, or with
// bind a file on which it is mounted, for programs that cannot follow links.
func SetTimezone(root, name string, bind bool) error {
	zone, err := readZone(root, name)
	if err != nil {
		return fmt.Errorf("cannot set the time zone %q: %w", name, err)
	}
	link := root + localtime
	if err := unmountLocaltime(link); err != nil {
		return err
	}
	if !bind {
		err = renameio.Symlink(zoneDir+"/"+name, link)
	} else {
		// The content too, so that the zone is right with and without the mount.
		err = renameio.WriteFile(link, zone, 0o644)
	}
	if err != nil {
		return fmt.Errorf("cannot set the time zone %q: %w", name, err)
	}
	if bind {
		err = MountPoint{Source: root + zoneDir + "/" + name, Target: link, Type: "none", Flags: unix.MS_BIND}.Mount()
		if err != nil {
			return err
		}
	}
	return writeZoneName(root, name)
}

// readZone returns a zone's file. A name or a link in the tree of zones that
// leads out of it finds nothing.
func readZone(root, name string) ([]byte, error) {
	if len(name) > 255 || !zoneName.MatchString(name) {
		return nil, ErrZoneName
	}
	zones, err := os.OpenRoot(root + zoneDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoZone
	}
	if err != nil {
		return nil, err
	}
	defer zones.Close()
	// The kernel would wait for a FIFO's writer.
	f, err := zones.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (%v)", ErrNoZone, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, ErrNoZone
	}
	data, err := io.ReadAll(io.LimitReader(f, maxZoneFile))
	if err != nil {
		return nil, err
	}
	// tzfile(5)
	if !bytes.HasPrefix(data, []byte("TZif")) {
		return nil, fmt.Errorf("%w (the file holds no time zone)", ErrNoZone)
	}
	return data, nil
}

// unmountLocaltime takes away what earlier calls have mounted.
func unmountLocaltime(path string) error {
	for range 64 {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT:
			return nil
		default:
			return fmt.Errorf("cannot unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("cannot unmount %s: something mounts it again and again", path)
}

// writeZoneName keeps Debian's /etc/timezone in step where there is one.
func writeZoneName(root, name string) error {
	path := root + "/etc/timezone"
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	if err := renameio.WriteFile(path, []byte(name+"\n"), 0o644); err != nil {
		return fmt.Errorf("the time zone is set, but %s still has the old one: %w", path, err)
	}
	return nil
}
