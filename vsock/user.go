package vsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// maxReply bounds the line that answers CONNECT: "OK " and a port number.
const maxReply = 32

// ErrRefused says that nothing listens on the port asked for, or that the
// guest is not ready to take streams.
var ErrRefused = errors.New("guest refused the connection")

// EndpointPath returns the path of the Unix socket on which a stream dialled
// by the guest to the host's port arrives, for a backend whose own socket is
// at base.
func EndpointPath(base string, port uint32) string {
	return base + "_" + utoa(port)
}

// DialUser opens a stream to a port of the guest whose user-mode backend
// listens at path. The context's deadline covers connecting and the answer.
func DialUser(ctx context.Context, path string, guest Addr) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, opError("dial", Addr{CID: CIDHost}, guest, err)
	}
	if err := requestPort(ctx, c, guest.Port); err != nil {
		c.Close()
		return nil, opError("dial", Addr{CID: CIDHost}, guest, err)
	}
	return NewConn(c, Addr{CID: CIDHost}, guest), nil
}

// requestPort performs the CONNECT exchange and leaves the stream at its
// first payload byte.
func requestPort(ctx context.Context, c net.Conn, port uint32) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return ctxError(ctx, err)
	}
	// Byte by byte: whatever follows the line belongs to the caller.
	var line []byte
	one := make([]byte, 1)
	for len(line) < maxReply {
		n, err := c.Read(one)
		if n == 1 {
			if one[0] == '\n' {
				if err := parseReply(line); err != nil {
					return err
				}
				if !stop() {
					return ctxError(ctx, context.Canceled)
				}
				return nil
			}
			line = append(line, one[0])
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w on port %d", ErrRefused, port)
		}
	}
	return fmt.Errorf("vsock backend sent no answer line: %q", line)
}

// parseReply accepts "OK <port>", the port being the backend's own choice.
func parseReply(line []byte) error {
	rest, ok := bytes.CutPrefix(line, []byte("OK "))
	if !ok {
		return fmt.Errorf("vsock backend answered %q to CONNECT", line)
	}
	if _, err := strconv.ParseUint(string(bytes.TrimRight(rest, "\r")), 10, 32); err != nil {
		return fmt.Errorf("vsock backend answered %q to CONNECT", line)
	}
	return nil
}

func ctxError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
