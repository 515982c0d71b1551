package vsh

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errInterrupted is what a read gives after interrupt.
var errInterrupted = errors.New("reading was given up")

// An input is Stdin, whose reads can be interrupted when it is a file. Standard
// input is usually blocking and shared with other processes, so it is neither
// made non-blocking nor read before it has something.
type input struct {
	r    io.Reader
	f    *os.File
	wake [2]*os.File // a pipe, nil for what is no file
}

func newInput(r io.Reader) (*input, error) {
	if r == nil {
		return &input{}, nil
	}
	in := &input{r: r, f: file(r)}
	if in.f == nil {
		return in, nil
	}
	var err error
	in.wake[0], in.wake[1], err = os.Pipe()
	return in, err
}

func (in *input) interruptible() bool { return in.r == nil || in.f != nil }

// read waits for input.
func (in *input) read(buf []byte) (int, error) {
	switch {
	case in.r == nil:
		return 0, io.EOF
	case in.f == nil:
		return in.r.Read(buf)
	}
	fds := []unix.PollFd{
		{Fd: int32(in.f.Fd()), Events: unix.POLLIN},
		{Fd: int32(in.wake[0].Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return 0, errInterrupted
		default:
			return in.f.Read(buf)
		}
	}
}

// interrupt ends what waits in read, if it is interruptible.
func (in *input) interrupt() {
	if in.wake[1] != nil {
		in.wake[1].Close()
		in.wake[1] = nil
	}
}

// close frees the input, which nobody may be reading any more.
func (in *input) close() {
	if in.wake[0] != nil {
		in.wake[0].Close()
	}
}
