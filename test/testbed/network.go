package testbed

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A Network is a network name space of its own, in which a bed's daemons can
// run: from there they reach nothing of this machine but what the test makes.
type Network struct {
	work chan func()
	over chan struct{}
}

// NewNetwork makes a Network that has nothing but a loopback interface, which
// is down. It takes root.
func NewNetwork() (*Network, error) {
	n := &Network{work: make(chan func()), over: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.over)
		// Never unlocked: the thread ends with the goroutine, and the name
		// space with the last process in it.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network: %w", err)
	}
	return n, nil
}

// Do runs a function in the network: the sockets that it makes and the
// processes that it starts belong there.
func (n *Network) Do(f func() error) (err error) {
	done := make(chan struct{})
	n.work <- func() {
		defer close(done)
		err = f()
	}
	<-done
	return err
}

// Open returns the name space, for interfaces that reach into it.
func (n *Network) Open() (f *os.File, err error) {
	err = n.Do(func() error {
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return f, err
}

// Close ends the network once nothing runs in it any more.
func (n *Network) Close() {
	close(n.work)
	<-n.over
}
