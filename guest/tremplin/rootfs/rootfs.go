// Package rootfs reads and changes files of a container from outside it. The
// container may be hostile and may run meanwhile, so every path is resolved by
// the kernel as in the container: no link in it leads out.
package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Root is the root directory of a container.
type Root struct {
	dir *os.File
	ids IDMap
}

// Open opens a container's root directory, which must be a directory without
// any link on the way. ids says how owners are stored on the disk.
func Open(dir string, ids IDMap) (*Root, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open the container's files at", Path: dir, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir), ids: ids}, nil
}

// Close lets go of the directory.
func (r *Root) Close() error { return r.dir.Close() }

// open opens a path of the container.
func (r *Root) open(op, name string, flags uint64, mode uint64) (*os.File, error) {
	if flags&unix.O_PATH == 0 {
		// Devices and FIFOs shall neither wait nor become a terminal of ours.
		flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	for range 16 {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Mode: mode,
			// Mounts are never the container's: it has a mount namespace of its own.
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		// The kernel gives up when something is renamed meanwhile.
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, &fs.PathError{Op: op, Path: name, Err: unix.EAGAIN}
}

// Exists tells whether there is something, following links.
func (r *Root) Exists(name string) bool {
	f, err := r.open("stat", name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// IsRegular tells whether a path leads to a regular file.
func (r *Root) IsRegular(name string) bool {
	f, err := r.open("stat", name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// ReadFile reads a regular file of at most limit bytes.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	data, _, err := r.read(name, limit)
	return data, err
}

// openRegular opens a regular file. Devices, which an image may have of any
// kind, are not opened at all: that alone can have effects on the VM.
func (r *Root) openRegular(op, name string, flags uint64) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	at, err := r.open(op, name, flags&unix.O_NOFOLLOW|unix.O_PATH, 0)
	if err != nil {
		return nil, st, err
	}
	defer at.Close()
	fd := int(at.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, st, &fs.PathError{Op: op, Path: name, Err: errors.New("not a regular file")}
	}
	// What was looked at, whatever has the name by now.
	fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), int(flags&^unix.O_NOFOLLOW)|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), st, nil
}

func (r *Root) read(name string, limit int64) ([]byte, unix.Stat_t, error) {
	f, st, err := r.openRegular("read", name, unix.O_RDONLY)
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, st, err
	}
	if int64(len(data)) > limit {
		return nil, st, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it is larger than %d bytes", limit)}
	}
	return data, st, nil
}

// parent opens the directory that holds a path, and returns the last part of
// the path, which nothing follows.
func (r *Root) parent(op, name string) (*os.File, string, error) {
	clean := path.Clean("/" + name)
	dir, base := path.Split(clean)
	if base == "" {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: unix.EINVAL}
	}
	f, err := r.open(op, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return f, base, err
}

// WriteFile puts a file into the place of whatever has the name, unless that is
// this very file: a new one has to reach the disk, which takes its time. An
// owner is one of the container's.
func (r *Root) WriteFile(name string, data []byte, perm uint32, uid, gid uint32) error {
	diskUID, diskGID := r.ids.ToDisk(uid), r.ids.GroupToDisk(gid)
	if r.holds(name, data, perm, diskUID, diskGID) {
		return nil
	}
	return r.replace(name, data, perm, diskUID, diskGID)
}

// holds tells whether a name is that of a file with this content, mode and
// owner, and with no other name.
func (r *Root) holds(name string, data []byte, perm uint32, diskUID, diskGID int) bool {
	f, st, err := r.openRegular("read", name, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	defer f.Close()
	if st.Mode&0o7777 != perm || int(st.Uid) != diskUID || int(st.Gid) != diskGID || st.Nlink != 1 || st.Size != int64(len(data)) {
		return false
	}
	got, err := io.ReadAll(io.LimitReader(f, st.Size+1))
	return err == nil && bytes.Equal(got, data)
}

// replace writes a file beside the one to be replaced, and renames it.
func (r *Root) replace(name string, data []byte, perm uint32, diskUID, diskGID int) error {
	dir, base, err := r.parent("write", name)
	if err != nil {
		return err
	}
	defer dir.Close()
	at := int(dir.Fd())
	temp := tempName(base)
	// O_EXCL follows no link.
	fd, err := unix.Openat(at, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), temp)
	defer f.Close()
	_, err = f.Write(data)
	if err == nil {
		err = unix.Fchown(fd, diskUID, diskGID)
	}
	if err == nil {
		err = unix.Fchmod(fd, perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Renameat(at, temp, at, base)
	}
	if err != nil {
		unix.Unlinkat(at, temp, 0)
		return &fs.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// tempName cannot be foreseen inside, and ends soon.
func tempName(base string) string {
	return "." + base[:min(len(base), 32)] + "." + strconv.FormatInt(time.Now().UnixNano(), 36)
}

// Update reads a file, and when change returns other content, replaces it and
// keeps its owner and mode.
func (r *Root) Update(name string, limit int64, change func([]byte) ([]byte, error)) error {
	data, st, err := r.read(name, limit)
	if err != nil {
		return err
	}
	out, err := change(data)
	if err != nil || string(out) == string(data) {
		return err
	}
	return r.replace(name, out, st.Mode&0o777, int(st.Uid), int(st.Gid))
}

// Symlink puts a link into the place of whatever has the name.
func (r *Root) Symlink(target, name string) error {
	dir, base, err := r.parent("link", name)
	if err != nil {
		return err
	}
	defer dir.Close()
	at := int(dir.Fd())
	temp := tempName(base)
	err = unix.Symlinkat(target, at, temp)
	if err == nil {
		err = unix.Fchownat(at, temp, r.ids.ToDisk(0), r.ids.GroupToDisk(0), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Renameat(at, temp, at, base)
	}
	if err != nil {
		unix.Unlinkat(at, temp, 0)
		return &fs.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// Mkdir makes one directory, and tells whether there was none. One that is
// there stays as it is; anything else of that name is an error.
func (r *Root) Mkdir(name string, perm uint32, uid, gid uint32) (bool, error) {
	dir, base, err := r.parent("mkdir", name)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	at := int(dir.Fd())
	err = unix.Mkdirat(at, base, 0o700)
	if err == unix.EEXIST {
		f, err := r.open("mkdir", name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return false, err
		}
		return false, f.Close()
	}
	if err != nil {
		return false, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if err = unix.Fchown(fd, r.ids.ToDisk(uid), r.ids.GroupToDisk(gid)); err == nil {
		err = unix.Fchmod(fd, perm)
	}
	if err != nil {
		return false, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return true, nil
}

// ReadDir returns the names of what is in a directory, at most limit.
func (r *Root) ReadDir(name string, limit int) ([]fs.DirEntry, error) {
	f, err := r.open("read", name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(limit)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, err
}
