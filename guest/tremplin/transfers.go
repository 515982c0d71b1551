package tremplin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/vsock"
)

const (
	maxTransfers   = 16
	transferIdle   = time.Minute      // one that nobody uses by then is dropped
	greetingWait   = 10 * time.Second // of a new connection
	transferPrefix = "transfer:"
	maxGreeting    = 64
)

var transferID = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// transfers are connections of the host that wait for the call that uses
// them: each has named itself.
type transfers struct {
	log *slog.Logger

	mu      sync.Mutex
	waiting map[string]*transfer
	opening int
	running sync.WaitGroup
}

type transfer struct {
	conn net.Conn
	late *time.Timer
}

func newTransfers(log *slog.Logger) *transfers {
	return &transfers{log: log, waiting: map[string]*transfer{}}
}

// serve takes connections until the listener is closed.
func (t *transfers) serve(ctx context.Context, l net.Listener) error {
	defer t.drop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the host's transfers are no longer accepted: %w", err)
		}
		if !t.open() {
			t.log.Error("a transfer is refused: too many wait", "limit", maxTransfers)
			conn.Close()
			continue
		}
		t.running.Go(func() {
			if err := t.greet(conn); err != nil {
				t.log.Error("a transfer is refused", "err", err)
				conn.Close()
			}
		})
	}
}

func (t *transfers) open() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opening+len(t.waiting) >= maxTransfers {
		return false
	}
	t.opening++
	return true
}

// greet reads a connection's name and lets it wait.
func (t *transfers) greet(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(greetingWait))
	id, err := vsock.ReadFrame(conn, maxGreeting)
	name := strings.ToLower(string(id))
	if err == nil && !transferID.MatchString(name) {
		err = errors.New("its name is no UUID")
	}
	t.mu.Lock()
	t.opening--
	if err == nil && t.waiting[name] != nil {
		err = errors.New("there is one of this name already")
	}
	if err != nil {
		t.mu.Unlock()
		return err
	}
	own := &transfer{conn: conn}
	t.waiting[name] = own
	own.late = time.AfterFunc(transferIdle, func() {
		if t.take(name) == own {
			t.log.Warn("a transfer that nobody used is dropped", "transfer", name)
			conn.Close()
		}
	})
	t.mu.Unlock()
	// The call may come as soon as the host has read this.
	err = vsock.WriteFrame(conn, []byte("ready"))
	if err != nil && t.take(name) != own {
		return nil // whoever uses it will notice
	}
	return err
}

// take returns a waiting connection, whose owner the caller is from then on.
func (t *transfers) take(name string) *transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := t.waiting[name]
	delete(t.waiting, name)
	return own
}

// use returns the connection that a path names.
func (t *transfers) use(path string) (net.Conn, error) {
	name := strings.ToLower(strings.TrimPrefix(path, transferPrefix))
	own := t.take(name)
	if own == nil {
		return nil, fmt.Errorf("there is no transfer %.80q: it must be opened on port %d, and used within %s", name, vsock.PortTransfer, transferIdle)
	}
	own.late.Stop()
	own.conn.SetDeadline(time.Time{})
	return own.conn, nil
}

// drop closes what waits.
func (t *transfers) drop() {
	t.mu.Lock()
	for name, own := range t.waiting {
		own.late.Stop()
		own.conn.Close()
		delete(t.waiting, name)
	}
	t.mu.Unlock()
	t.running.Wait()
}
