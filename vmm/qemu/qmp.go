package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/auberge-vm/auberge/vmm"
)

// maxQMPLine bounds one message of QEMU, in bytes.
const maxQMPLine = 1 << 20

// A Monitor speaks QMP (QEMU's docs/interop/qmp-spec) on one connection.
type Monitor struct {
	conn net.Conn
	done chan struct{} // the reader has ended

	mu      sync.Mutex
	nextID  int
	pending map[int]chan message
	guest   bool // the guest has powered off or reset
}

var _ vmm.Monitor = (*Monitor)(nil)

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    *int   `json:"id"`
	Event string `json:"event"`
	Data  struct {
		Guest bool `json:"guest"`
	} `json:"data"`
}

var errMonitorClosed = errors.New("QEMU has closed its monitor")

// Monitor connects to QEMU's monitor socket and negotiates.
func (Driver) Monitor(ctx context.Context, path string) (vmm.Monitor, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor: %w", err)
	}
	m, err := newMonitor(ctx, c)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func newMonitor(ctx context.Context, c net.Conn) (*Monitor, error) {
	m := &Monitor{conn: c, done: make(chan struct{}), pending: map[int]chan message{}}
	greeted := make(chan struct{})
	go m.read(greeted)
	select {
	case <-greeted:
	case <-m.done:
		return nil, errMonitorClosed
	case <-ctx.Done():
		m.Close()
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", context.Cause(ctx))
	}
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// read takes everything QEMU says until it closes the connection.
func (m *Monitor) read(greeted chan<- struct{}) {
	defer close(m.done)
	defer m.conn.Close()
	sc := bufio.NewScanner(m.conn)
	sc.Buffer(make([]byte, 0, 4096), maxQMPLine)
	for sc.Scan() {
		var msg message
		if err := json.Unmarshal(sc.Bytes(), &msg); err != nil {
			// A monitor that talks nonsense is as good as none.
			return
		}
		switch {
		case msg.QMP != nil:
			if greeted != nil {
				close(greeted)
				greeted = nil
			}
		case msg.Event == "SHUTDOWN":
			m.mu.Lock()
			m.guest = m.guest || msg.Data.Guest
			m.mu.Unlock()
		case msg.ID != nil:
			m.mu.Lock()
			ch := m.pending[*msg.ID]
			delete(m.pending, *msg.ID)
			m.mu.Unlock()
			if ch != nil {
				ch <- msg
			}
		}
	}
}

// Execute runs one command and stores what it returns in result, unless that
// is nil.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	ch := make(chan message, 1)
	m.mu.Lock()
	m.nextID++
	id := m.nextID
	m.pending[id] = ch
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pending, id)
		m.mu.Unlock()
	}()
	req := map[string]any{"execute": command, "id": id}
	if args != nil {
		req["arguments"] = args
	}
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline() // zero when there is none
	m.conn.SetWriteDeadline(deadline)
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	var msg message
	select {
	case msg = <-ch:
	case <-m.done:
		// It may have answered before.
		select {
		case msg = <-ch:
		default:
			return fmt.Errorf("QMP %s: %w", command, errMonitorClosed)
		}
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	}
	if msg.Error != nil {
		return fmt.Errorf("QMP %s: %s: %s", command, msg.Error.Class, msg.Error.Desc)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(msg.Return, result)
}

// Quit ends QEMU. That QEMU closes the connection before it answers counts as
// success.
func (m *Monitor) Quit(ctx context.Context) error {
	err := m.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, errMonitorClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// Ended waits for the end of the connection.
func (m *Monitor) Ended() bool {
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest
}

// Close ends the connection; QEMU runs on.
func (m *Monitor) Close() error {
	err := m.conn.Close()
	<-m.done
	return err
}
