package tremplin

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/auberge-vm/auberge/guest/tremplin/archive"
	"golang.org/x/sys/unix"
)

// openTransfer opens a path beneath the directory of transfers, which may be
// given with it or without. A path that leads out is refused.
func (s *Server) openTransfer(name string, flags, mode uint64) (*os.File, error) {
	dir, err := unix.Openat2(unix.AT_FDCWD, s.cfg.TransferDir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("there is no directory of transfers %s: %w", s.cfg.TransferDir, err)
	}
	defer unix.Close(dir)
	rest, err := s.transferPath(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat2(dir, rest, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Mode: mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open %q beneath %s: %w", name, s.cfg.TransferDir, err)
	}
	f := os.NewFile(uintptr(fd), name)
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

// transferPath returns a path relative to the directory of transfers.
func (s *Server) transferPath(name string) (string, error) {
	rest := strings.TrimLeft(strings.TrimPrefix(name, s.cfg.TransferDir+"/"), "/")
	if strings.HasPrefix(name, "/") && !strings.HasPrefix(name, s.cfg.TransferDir+"/") {
		return "", fmt.Errorf("%q is not beneath %s", name, s.cfg.TransferDir)
	}
	if rest == "" || strings.ContainsRune(rest, 0) || len(rest) > 4000 {
		return "", fmt.Errorf("%.80q names no file beneath %s", name, s.cfg.TransferDir)
	}
	return rest, nil
}

// localImage is one of two files in the VM.
type localImage struct {
	s                *Server
	rootfs, metadata string
}

func (l localImage) fetch(ctx context.Context, _ func(int32)) (string, func(), error) {
	s := l.s
	rootfs, err := s.openTransfer(l.rootfs, unix.O_RDONLY, 0)
	if err != nil {
		return "", nil, err
	}
	defer rootfs.Close()
	file, err := s.openTransfer(l.metadata, unix.O_RDONLY, 0)
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	// Only what was looked at goes to Incus.
	metadata, err := archive.CleanMetadata(contextReader{ctx, file})
	if err != nil {
		return "", nil, fmt.Errorf("the image's metadata %s is refused: %w", l.metadata, err)
	}
	fingerprint, err := s.incus.UploadSplit(ctx, metadata, contextReader{ctx, rootfs}, url.Values{passingKey: {"local"}}.Encode())
	if err != nil {
		return "", nil, fmt.Errorf("Incus does not take the image: %w", err)
	}
	return fingerprint, s.passing(fingerprint), nil
}
