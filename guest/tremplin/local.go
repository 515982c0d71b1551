package tremplin

import (
	"context"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"golang.org/x/sys/unix"
)

// openTransfer opens a file beneath the directory of transfers for reading. Its
// path may be given with that directory or without; one that leads out is
// refused.
func (s *Server) openTransfer(name string) (*os.File, error) {
	rest, err := s.transferPath(name)
	if err != nil {
		return nil, err
	}
	f, err := s.openBeneath(rest, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is no regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openTransferDir opens the directory of a new file beneath that of transfers,
// and returns the file's name in it, which is nobody's.
func (s *Server) openTransferDir(name string) (*os.File, string, error) {
	rest, err := s.transferPath(name)
	if err != nil {
		return nil, "", err
	}
	where, base := path.Split(rest)
	dir, err := s.openBeneath(path.Join(".", where), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", err
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.EEXIST
	}
	if err != unix.ENOENT {
		dir.Close()
		return nil, "", fmt.Errorf("cannot make %q beneath %s: %w", name, s.cfg.TransferDir, err)
	}
	return dir, base, nil
}

// openBeneath opens a path relative to the directory of transfers.
func (s *Server) openBeneath(rest string, flags uint64) (*os.File, error) {
	dir, err := unix.Openat2(unix.AT_FDCWD, s.cfg.TransferDir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("there is no directory of transfers %s: %w", s.cfg.TransferDir, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, rest, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open %q beneath %s: %w", rest, s.cfg.TransferDir, err)
	}
	return os.NewFile(uintptr(fd), rest), nil
}

// transferPath returns a path relative to the directory of transfers.
func (s *Server) transferPath(name string) (string, error) {
	rest := strings.TrimLeft(strings.TrimPrefix(name, s.cfg.TransferDir+"/"), "/")
	if strings.HasPrefix(name, "/") && !strings.HasPrefix(name, s.cfg.TransferDir+"/") {
		return "", fmt.Errorf("%q is not beneath %s", name, s.cfg.TransferDir)
	}
	// What an export can write an import must be able to name, and the other
	// way round: no path has two meanings.
	if rest == "." || !fs.ValidPath(rest) || strings.ContainsRune(rest, 0) || len(rest) > 4000 {
		return "", fmt.Errorf("%.80q names no file beneath %s", name, s.cfg.TransferDir)
	}
	return rest, nil
}

// localImage is one of two files in the VM.
type localImage struct {
	s                *Server
	rootfs, metadata string
}

func (l localImage) fetch(ctx context.Context, _ func(int32)) (_ string, _ func(), err error) {
	s := l.s
	rootfs, err := s.openTransfer(l.rootfs)
	if err != nil {
		return "", nil, err
	}
	defer rootfs.Close()
	file, err := s.openTransfer(l.metadata)
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	// Only what was looked at goes to Incus.
	metadata, err := archive.CleanMetadata(contextReader{ctx, file})
	if err != nil {
		return "", nil, fmt.Errorf("the image's metadata %s is refused: %w", l.metadata, err)
	}
	end := s.arrival()
	defer func() { end(err) }()
	fingerprint, err := s.incus.UploadSplit(ctx, metadata, contextReader{ctx, rootfs}, url.Values{passingKey: {"local"}}.Encode())
	if err != nil {
		return "", nil, fmt.Errorf("Incus does not take the image: %w", err)
	}
	return fingerprint, s.passing(fingerprint), nil
}
