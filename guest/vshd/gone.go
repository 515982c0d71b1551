package vshd

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A goneWatch tells when the far end of a stream has hung up, without reading
// the stream, which may hold data that there is no room for.
type goneWatch struct {
	gone  chan struct{} // closed when the far end has hung up
	done  chan struct{} // closed when nothing is watched any more
	epoll *os.File
}

// watchGone starts watching. On a stream without a descriptor it never tells.
func watchGone(stream any) (*goneWatch, error) {
	w := &goneWatch{gone: make(chan struct{}), done: make(chan struct{})}
	conn, ok := stream.(syscall.Conn)
	if !ok {
		close(w.done)
		return w, nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	w.epoll = os.NewFile(uintptr(fd), "epoll")
	// An epoll of our own, because Go's wakes up for data only, and once.
	var added error
	err = raw.Control(func(s uintptr) {
		added = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(s), &unix.EpollEvent{Events: unix.EPOLLRDHUP})
	})
	if err == nil {
		err = added
	}
	if err != nil {
		w.epoll.Close()
		return nil, err
	}
	go w.wait()
	return w, nil
}

func (w *goneWatch) wait() {
	defer close(w.done)
	raw, err := w.epoll.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		n, _ := unix.EpollWait(int(fd), make([]unix.EpollEvent, 1), 0)
		return n > 0
	})
	if err == nil {
		close(w.gone)
	}
}

// close ends the watch.
func (w *goneWatch) close() {
	if w.epoll != nil {
		w.epoll.Close()
	}
	<-w.done
}
