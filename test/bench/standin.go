package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

// A crowd plays the supervisors, hypervisors and guests of many VMs: it speaks
// the control protocol of package vmm and, as the guests, gRPC. Only the
// benchmark has it. See standin/main.go for how it gets its VMs.
type crowd struct {
	path   string
	l      *net.UnixListener
	guests *guests
	wg     sync.WaitGroup
	failed atomic.Pointer[error]

	mu     sync.Mutex
	vms    map[*extra]bool
	closed bool
}

// newCrowd listens for stand-ins at path.
func newCrowd(path string) (*crowd, error) {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o777); err != nil {
		l.Close()
		return nil, err
	}
	c := &crowd{path: path, l: l, guests: newGuests(), vms: map[*extra]bool{}}
	c.wg.Go(c.accept)
	return c, nil
}

// close ends all VMs and waits until nothing is left of them here.
func (c *crowd) close() {
	c.l.Close()
	c.mu.Lock()
	c.closed = true
	var vms []*extra
	for e := range c.vms {
		vms = append(vms, e)
	}
	c.mu.Unlock()
	for _, e := range vms {
		e.end("the benchmark is over")
	}
	c.guests.close()
	c.wg.Wait()
}

func (c *crowd) accept() {
	for {
		conn, err := c.l.AcceptUnix()
		if err != nil {
			return
		}
		e, err := c.take(conn)
		if err != nil {
			conn.Close()
			c.fail(err)
			continue
		}
		c.mu.Lock()
		c.vms[e] = true
		late := c.closed
		c.mu.Unlock()
		c.wg.Go(e.serve)
		if late {
			e.end("the benchmark is over")
		}
	}
}

// fail keeps the first error for whoever measures.
func (c *crowd) fail(err error) { c.failed.CompareAndSwap(nil, &err) }

func (c *crowd) err() error {
	if p := c.failed.Load(); p != nil {
		return fmt.Errorf("stand-in for a VM: %w", *p)
	}
	return nil
}

// take takes a VM over from its stand-in.
func (c *crowd) take(conn *net.UnixConn) (*extra, error) {
	cwd := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(cwd, oob)
	if err != nil {
		return nil, err
	}
	files, err := passed(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(files) != 3 {
		closeAll(files)
		return nil, fmt.Errorf("a stand-in passed %d descriptors", len(files))
	}
	defer files[0].Close()
	control, err := net.FileListener(files[0])
	if err != nil {
		closeAll(files[1:])
		return nil, err
	}
	pid, err := peerPID(conn)
	if err != nil {
		closeAll(files[1:])
		control.Close()
		return nil, err
	}
	return &extra{crowd: c, dir: string(cwd[:n]), process: conn, pid: pid, control: control.(*net.UnixListener),
		lifeline: files[1], reader: files[2], ended: make(chan struct{})}, nil
}

// An extra is one VM of a crowd.
type extra struct {
	crowd            *crowd
	dir              string
	process          *net.UnixConn // the stand-in's: it ends when this is closed
	pid              int
	control          *net.UnixListener
	lifeline, reader *os.File

	mu        sync.Mutex
	spec      json.RawMessage
	endpoints []*os.File
	ports     []uint32
	guest     net.Listener

	once  sync.Once
	ended chan struct{}
	exit  vmm.Exit
	wg    sync.WaitGroup
}

// serve answers on the control socket until the VM has ended.
func (e *extra) serve() {
	for {
		conn, err := e.control.AcceptUnix()
		if err != nil {
			break
		}
		e.wg.Go(func() {
			defer conn.Close()
			if err := e.answer(conn); err != nil {
				e.crowd.fail(err)
			}
		})
	}
	e.wg.Wait()
	e.crowd.mu.Lock()
	delete(e.crowd.vms, e)
	e.crowd.mu.Unlock()
}

// answer serves one connection: one request, and for watch the end as well.
func (e *extra) answer(conn *net.UnixConn) error {
	buf := make([]byte, 64<<10)
	oob := make([]byte, unix.CmsgSpace(64*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	// The kernel and the disks of the VM, which nobody will boot.
	files, err := passed(oob[:oobn])
	closeAll(files)
	if err != nil {
		return err
	}
	var req struct {
		Op   string          `json:"op"`
		Spec json.RawMessage `json:"spec"`
		Port uint32          `json:"port"`
	}
	if err := json.Unmarshal(buf[:n], &req); err != nil {
		return err
	}
	switch req.Op {
	case "launch":
		if err := e.launch(req.Spec); err != nil {
			return errors.Join(err, send(conn, map[string]any{"error": err.Error()}))
		}
		return send(conn, e.status())
	case "status":
		return send(conn, e.status(), e.reader)
	case "endpoints":
		e.mu.Lock()
		ports, files := e.ports, e.endpoints
		e.mu.Unlock()
		return send(conn, map[string]any{"ports": ports}, files...)
	case "dial":
		f, err := e.dial(req.Port)
		if err != nil {
			return errors.Join(err, send(conn, map[string]any{"error": err.Error()}))
		}
		defer f.Close()
		send(conn, map[string]any{}, f) // whoever dialled may have gone
		return nil
	case "console":
		return send(conn, map[string]any{"console": []byte("no console: a stand-in\n")})
	case "stop":
		e.end("it was stopped")
		return send(conn, e.status())
	case "watch":
		if err := send(conn, map[string]any{}); err != nil {
			return err
		}
		<-e.ended
		send(conn, map[string]any{"exit": e.exit}) // whoever watched may have gone
		return nil
	}
	return send(conn, map[string]any{"error": fmt.Sprintf("a stand-in knows no %q", req.Op)})
}

func (e *extra) status() any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return map[string]any{"status": map[string]any{"pid": e.pid, "spec": e.spec}}
}

// launch makes the sockets of the VM and has its guest say that it is ready.
func (e *extra) launch(raw json.RawMessage) error {
	var spec vmm.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.guest != nil {
		return errors.New("launched twice")
	}
	base := filepath.Join(e.dir, vmm.VsockSocket)
	l, err := listen(base)
	if err != nil {
		return err
	}
	e.spec, e.guest = raw, l
	for _, port := range spec.Vsock.Ports {
		l, err := listen(vsock.EndpointPath(base, port))
		if err != nil {
			return err
		}
		f, err := l.File()
		l.Close()
		if err != nil {
			return err
		}
		e.endpoints, e.ports = append(e.endpoints, f), append(e.ports, port)
	}
	e.wg.Go(func() { e.crowd.guests.serve(e.guest, e) })
	e.wg.Go(func() {
		if err := sayReady(vsock.EndpointPath(base, vsock.PortStartupListener), e.ended); err != nil {
			e.crowd.fail(err)
		}
	})
	return nil
}

// dial opens a stream to a port of the guest, as a supervisor does for the
// service.
func (e *extra) dial(port uint32) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := vsock.DialUser(ctx, filepath.Join(e.dir, vmm.VsockSocket), vsock.Addr{VM: e.dir, Port: port})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Conn.(*net.UnixConn).File()
}

// end ends the VM.
func (e *extra) end(why string) {
	e.once.Do(func() {
		e.exit = vmm.Exit{Reason: vmm.ExitStopped, Message: why, Time: time.Now()}
		close(e.ended)
		e.control.Close()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.guest != nil {
			e.guest.Close()
		}
		closeAll(append(e.endpoints, e.lifeline, e.reader))
		e.process.Close()
	})
}

// listen listens on a socket that the service, another user, can reach.
func listen(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o777); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// send writes one packet of the control protocol.
func send(conn *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			raw, err := f.SyscallConn()
			if err != nil {
				return err
			}
			if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, oob, nil)
	return err
}

// passed takes the descriptors out of a control message.
func passed(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed "+strconv.Itoa(fd)))
		}
	}
	return files, nil
}

func peerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
