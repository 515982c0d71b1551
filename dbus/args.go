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

// readArgs reads the arguments of msg, which must be those of in.
func readArgs(msg *message, in []Arg) ([]any, error) {
	if want := signatureOf(in); msg.signature != want {
		return nil, fmt.Errorf("the arguments have the type %q, not %q", msg.signature, want)
	}
	if len(msg.bodyBytes()) > maxPlain {
		return nil, fmt.Errorf("arguments of %d bytes", len(msg.bodyBytes()))
	}
	r := bodyReader{order: msg.order, b: msg.bodyBytes()}
	var values []any
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
		}
	}
	return values, r.end()
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
