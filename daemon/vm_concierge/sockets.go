package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vsock"
)

// A socketStore keeps the listening sockets of kernel vsock with the service
// manager while this service is restarted. Any user of the host could take the
// ports otherwise, and hear what guests say there; and guests' calls queue.
type socketStore struct {
	log    *slog.Logger
	passed map[string]*os.File
}

// newSocketStore takes what an earlier run of the service has stored, and drops
// it when it is not wanted any more.
func newSocketStore(log *slog.Logger, wanted bool) *socketStore {
	s := &socketStore{log: log, passed: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		if wanted {
			s.passed[f.Name()] = f
			continue
		}
		s.tell("FDSTOREREMOVE=1\nFDNAME="+f.Name(), nil)
		f.Close()
	}
	return s
}

// socket returns the listening socket of a port, the one that was stored if
// there is one.
func (s *socketStore) socket(port uint32) (*os.File, error) {
	name := fmt.Sprintf("vsock-%d", port)
	if f := s.passed[name]; f != nil {
		delete(s.passed, name)
		return f, nil
	}
	f, err := vsock.KernelSocket(port)
	if err == nil {
		s.tell("FDSTORE=1\nFDNAME="+name, f)
	}
	return f, err
}

// tell tells the service manager something, where there is one.
func (s *socketStore) tell(state string, f *os.File) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if err := notify(path, state, f); err != nil {
		s.log.Warn("store a socket with the service manager", "err", err)
	}
}

func notify(path, state string, f *os.File) error {
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	to := &unix.SockaddrUnix{Name: path}
	if f == nil {
		return unix.Sendmsg(c, []byte(state), nil, to, 0)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.Sendmsg(c, []byte(state), unix.UnixRights(int(fd)), to, 0) })
	return cmp.Or(err, serr)
}
