package dbus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// maxPlain is the longest body of a call with plain arguments: names and
// settings.
const maxPlain = 64 << 10

// An fdIndex stands for a descriptor among arguments, until it is taken out of
// the message.
type fdIndex uint32

// readArgs reads the arguments of msg, which must be those of in. Descriptors
// stay with the message, see takeArgs.
func readArgs(msg *message, in []Arg) ([]any, error) {
	if want := signatureOf(in); msg.signature != want {
		return nil, fmt.Errorf("the arguments have the type %q, not %q", msg.signature, want)
	}
	if len(msg.bodyBytes()) > maxPlain {
		return nil, fmt.Errorf("arguments of %d bytes", len(msg.bodyBytes()))
	}
	r := bodyReader{order: msg.order, b: msg.bodyBytes()}
	var values []any
	var indexes []uint32
	for _, arg := range in {
		switch arg.Type {
		case "s":
			values = append(values, r.string())
		case "u":
			values = append(values, r.uint32())
		case "b":
			values = append(values, r.bool())
		case "a{sv}":
			values = append(values, r.dict())
		case "h":
			i := r.uint32()
			indexes = append(indexes, i)
			values = append(values, fdIndex(i))
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return values, checkIndexes(indexes, len(msg.fds))
}

// takeArgs makes files of the descriptors among arguments. They are the
// caller's to close.
func (m *message) takeArgs(values []any) []*os.File {
	var indexes []uint32
	for _, v := range values {
		if i, ok := v.(fdIndex); ok {
			indexes = append(indexes, uint32(i))
		}
	}
	files := m.takeFiles(indexes)
	n := 0
	for i, v := range values {
		if _, ok := v.(fdIndex); ok {
			values[i] = files[n]
			n++
		}
	}
	return files
}

func signatureOf(args []Arg) string {
	var b strings.Builder
	for _, arg := range args {
		b.WriteString(arg.Type)
	}
	return b.String()
}

// writeResults encodes what a handler returned. It takes over the files among
// the results, whatever happens.
func writeResults(values []any) (b body, err error) {
	var fds []int
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	for i, v := range values {
		f, ok := v.(*os.File)
		if !ok {
			continue
		}
		fd, dupErr := takeFile(f)
		if err = errors.Join(err, dupErr); dupErr == nil {
			fds = append(fds, fd)
			values[i] = dbus.UnixFD(fd)
		}
	}
	if err != nil {
		return body{}, err
	}
	return plainBody(values...)
}

// takeFile turns f into a bare descriptor. Duplicating instead of using Fd
// leaves the descriptor's blocking mode alone, which the other side shares.
func takeFile(f *os.File) (int, error) {
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, io.ErrUnexpectedEOF
	err = conn.Control(func(raw uintptr) {
		fd, dupErr = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(err, dupErr)
}
