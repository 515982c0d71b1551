package seqpacket

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Limits bound the packets of a protocol. One packet must fit the kernel's
// default send buffer, 208 KiB.
type Limits struct {
	Bytes int // of one packet
	Files int // descriptors beside it
}

// A Packet is what was received at once.
type Packet struct {
	Data []byte
	// Files are close-on-exec and the receiver's.
	Files []*os.File
	// PID is the sender's process, zero where AskForSender was not called.
	PID int
}

// Send writes one packet with descriptors.
func (l Limits) Send(c *net.UnixConn, data []byte, files []*os.File) error {
	if len(data) > l.Bytes {
		return fmt.Errorf("control packet of %d bytes is longer than %d", len(data), l.Bytes)
	}
	if len(files) > l.Files {
		return fmt.Errorf("%d descriptors are more than %d", len(files), l.Files)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			var err error
			if fds[i], err = RawFD(f); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(data, oob, nil)
	runtime.KeepAlive(files)
	return err
}

// RawFD returns the descriptor without changing its mode, which File.Fd would:
// a listening socket shares it with whoever accepts on it.
func RawFD(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

// Receive reads one packet. At the end of the connection the error is io.EOF;
// with any error no descriptor is left open.
func (l Limits) Receive(c *net.UnixConn) (Packet, error) {
	size, err := nextPacket(c)
	if err != nil {
		return Packet{}, err
	}
	b := make([]byte, min(size, l.Bytes)+1)
	oob := make([]byte, unix.CmsgSpace(l.Files*4)+unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	// Descriptors can come with an empty packet too, which looks like the end.
	files, pid, ferr := parseControl(oob[:oobn])
	switch {
	case err != nil:
	case ferr != nil:
		err = ferr
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0, n > l.Bytes:
		err = errors.New("control packet is truncated")
	case len(files) > l.Files: // there was room for one more beside them
		err = fmt.Errorf("%d descriptors are more than %d", len(files), l.Files)
	}
	if err != nil {
		CloseAll(files)
		return Packet{}, err
	}
	return Packet{Data: b[:n], Files: files, PID: pid}, nil
}

// nextPacket waits for a packet and returns its size. Whoever watches a VM
// waits for days, and should not hold a buffer for the longest packet.
func nextPacket(c *net.UnixConn) (size int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			size, _, err = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if err = cmp.Or(rerr, err); err != nil {
		return 0, fmt.Errorf("wait for a control packet: %w", err)
	}
	return size, nil
}

func parseControl(oob []byte) (files []*os.File, pid int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, 0, err
	}
	for _, m := range msgs {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, pid, nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
