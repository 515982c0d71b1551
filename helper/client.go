package helper

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/seqpacket"
	"github.com/auberge-vm/auberge/vsock"
)

// slack is what an answer may take beyond the time that the server gives the
// verb.
const slack = 2 * packetTimeout

// A Client asks the helper. Each use is a connection of its own, so that a
// helper which was started again makes no difference.
type Client struct {
	// Path is the helper's socket.
	Path string
}

// Open opens a regular file as a caller would; see policy.Opener.
func (c *Client) Open(ctx context.Context, caller policy.Caller, path string, mode policy.Mode) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("open %q: the path must be absolute", path)
	}
	if len(caller.Groups) > maxGroups {
		caller.Groups = caller.Groups[:maxGroups]
	}
	f, err := c.callForFile(ctx, "open", &openArgs{UID: caller.UID, Groups: caller.Groups, Path: []byte(path), Mode: mode})
	if err != nil && !errors.As(err, new(*remoteError)) { // whose text says it
		err = fmt.Errorf("open %s as uid %d: %w", path, caller.UID, err)
	}
	return f, err
}

// Dial opens a stream to a port of a guest, from a reserved source port.
func (c *Client) Dial(ctx context.Context, guest vsock.Addr) (*vsock.Conn, error) {
	f, err := c.callForFile(ctx, "dial", &dialArgs{CID: guest.CID, Port: guest.Port, VM: guest.VM})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return vsock.FileConn(f, guest)
}

// ReserveCID takes a CID for a guest; see vsock.ReserveCID.
func (c *Client) ReserveCID(ctx context.Context, guest vsock.Addr) (*os.File, error) {
	return c.callForFile(ctx, "reserve-cid", &reserveArgs{CID: guest.CID, VM: guest.VM})
}

// callForFile uses a verb that answers with a descriptor.
func (c *Client) callForFile(ctx context.Context, verb string, args any) (*os.File, error) {
	f, err := c.call(ctx, verb, args)
	if err == nil && f == nil {
		err = fmt.Errorf("the privileged helper sent no descriptor for %s", verb)
	}
	return f, err
}

// call uses a verb.
func (c *Client) call(ctx context.Context, verb string, args any) (*os.File, error) {
	timeout := verbs[verb].timeout + slack
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the privileged helper at %s did not answer within %v", c.Path, timeout))
	defer cancel()
	b, err := encode(verb, args)
	if err != nil {
		return nil, err
	}
	r, files, err := c.exchange(ctx, b)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ask the privileged helper: %w", err)
	}
	if err := r.err(); err != nil {
		seqpacket.CloseAll(files)
		return nil, err
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files[0], nil
}

func (c *Client) exchange(ctx context.Context, packet []byte) (r reply, files []*os.File, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return r, nil, fmt.Errorf("%w (it does not run; see systemctl status auberge-helper.socket)", err)
	}
	if err != nil {
		return r, nil, err
	}
	defer conn.Close()
	u := conn.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { u.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sendErr := requests.Send(u, packet, nil)
	if sendErr != nil && !errors.Is(sendErr, syscall.EPIPE) {
		return r, nil, sendErr
	}
	// One that refuses us may have said why before it hung up.
	p, err := replies.Receive(u)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return r, nil, errors.New("it hung up without an answer: it was ended meanwhile, or does not serve this user (its log says which)")
	case err != nil:
		return r, nil, cmp.Or(sendErr, err)
	}
	if err := json.Unmarshal(p.Data, &r); err != nil {
		seqpacket.CloseAll(p.Files)
		return r, nil, fmt.Errorf("its answer: %w", err)
	}
	return r, p.Files, nil
}
