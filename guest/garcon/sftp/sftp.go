// Package sftp gives the host the user's files: on every stream that the host
// opens it runs an sftp-server, as the user, and carries its bytes.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

// ServerPath is where OpenSSH has its server in Debian.
const ServerPath = "/usr/lib/openssh/sftp-server"

const (
	// most bounds the servers at a time.
	most = 16
	// patience is for a server to end once its stream has.
	patience = 5 * time.Second
)

// A Server runs sftp-servers.
type Server struct {
	Path string // of sftp-server
	Dir  string // where it starts
	Env  []string
	Log  *slog.Logger
}

// Serve runs one on every stream of l, until ctx is done; it closes l, and
// waits for those that run.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, most)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		default:
			return fmt.Errorf("accept a stream for sftp: %w", err)
		}
		select {
		case slots <- struct{}{}:
			streams.Go(func() {
				defer func() { <-slots }()
				defer conn.Close()
				if err := s.serve(ctx, conn); err != nil {
					s.Log.Warn("an sftp-server failed", "err", err)
				}
			})
		default:
			s.Log.Warn("a stream for sftp is refused", "err", "too many", "limit", most)
			conn.Close()
		}
	}
}

// serve copies by itself and does not hand over the stream, whose writes have
// to be small on their way to the host.
func (s *Server) serve(ctx context.Context, conn net.Conn) error {
	cmd := exec.CommandContext(ctx, s.Path)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, s.Env, conn, os.Stderr
	cmd.WaitDelay = patience
	input, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var copier sync.WaitGroup
	copier.Go(func() {
		io.Copy(input, conn)
		input.Close()
	})
	err = cmd.Wait()
	conn.Close()
	copier.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() != nil {
		return nil
	}
	return err
}
