package vmm

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
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/seqpacket"
	"github.com/auberge-vm/auberge/vmm/crash"
)

// The control socket carries one JSON object per packet (SOCK_SEQPACKET), with
// descriptors beside it. A client sends one request per connection and reads
// one reply; after a watch request, a second comes when the VM has ended. The
// socket's name is where the VMs' user can write: a client believes the kernel
// only as to who answers.

const (
	maxPacket = 160 << 10 // bytes; below the kernel's default send buffer
	maxFiles  = 64        // descriptors in one packet
)

type operation string

const (
	opLaunch    operation = "launch"    // Spec and files: run the VM
	opStatus    operation = "status"    // what runs
	opEndpoints operation = "endpoints" // the listening sockets
	opConsole   operation = "console"   // the console's tail
	opStop      operation = "stop"      // end the VM at once
	opWatch     operation = "watch"     // tell when it has ended
	opPause     operation = "pause"     // stop the processors
	opResume    operation = "resume"    // let them go on
	opListen    operation = "listen"    // a listening socket for one more port
	opDial      operation = "dial"      // a stream to a port of the guest
	opResize    operation = "resize"    // change a disk's size
	opProbe     operation = "probe"     // find out whether KVM runs guests
)

type request struct {
	Op   operation `json:"op"`
	Spec *Spec     `json:"spec,omitempty"`
	// Record says that the last file of a launch is where the exit record is to
	// be written.
	Record bool `json:"record,omitempty"`
	// Reason is why a stop was asked, for the exit record.
	Reason string `json:"reason,omitempty"`
	// Port is the port to listen on, or the guest's to dial.
	Port uint32 `json:"port,omitempty"`
	// Disk and Size, in bytes, are for a resize.
	Disk int   `json:"disk,omitempty"`
	Size int64 `json:"size,omitempty"`
}

type reply struct {
	Error   string   `json:"error,omitempty"`
	Status  *Status  `json:"status,omitempty"`
	Ports   []uint32 `json:"ports,omitempty"`
	Console []byte   `json:"console,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
	// Refused says that nothing in the guest listens on the port dialled.
	Refused bool `json:"refused,omitempty"`
	// NoKVM is why KVM cannot be used, after a probe.
	NoKVM string `json:"no_kvm,omitempty"`

	// pid is the process that sent the reply, as the kernel says.
	pid int
}

// A Status is what a supervisor says of its VM.
type Status struct {
	// PID is the hypervisor's; zero while nothing runs.
	PID  int   `json:"pid"`
	Spec *Spec `json:"spec,omitempty"`
	// Paused says that the processors stand still because somebody asked.
	Paused bool `json:"paused,omitempty"`
}

// packets bounds what goes over the control socket.
var packets = seqpacket.Limits{Bytes: maxPacket, Files: maxFiles}

// sendPacket writes one JSON packet with descriptors.
func sendPacket(c *net.UnixConn, v any, files []*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return packets.Send(c, b, files)
}

// receivePacket reads one JSON packet and its descriptors. At the end of the
// connection the error is io.EOF.
func receivePacket(c *net.UnixConn, v any) ([]*os.File, error) {
	files, _, err := receiveFrom(c, v)
	return files, err
}

// receiveFrom tells the sender's process ID too, zero where the socket does
// not ask for it.
func receiveFrom(c *net.UnixConn, v any) (files []*os.File, pid int, err error) {
	p, err := packets.Receive(c)
	if err != nil {
		return nil, 0, err
	}
	if err := json.Unmarshal(p.Data, v); err != nil {
		closeAll(p.Files)
		return nil, 0, fmt.Errorf("control packet: %w", err)
	}
	return p.Files, p.PID, nil
}

// gone says whether an error of a call means that no supervisor is there.
func gone(err error) bool {
	for _, e := range []error{io.EOF, fs.ErrNotExist, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func closeAll(files []*os.File) { seqpacket.CloseAll(files) }

// call performs one request on a fresh connection, to whose reply no
// descriptors belong.
func call(ctx context.Context, path string, req request, files []*os.File) (*reply, error) {
	r, got, err := callForFiles(ctx, path, req, files)
	closeAll(got)
	return r, err
}

// callForFiles performs a request whose reply comes with descriptors.
func callForFiles(ctx context.Context, path string, req request, files []*os.File) (*reply, []*os.File, error) {
	c, err := dialControl(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sendErr := sendPacket(c, req, files)
	if sendErr != nil && !errors.Is(sendErr, syscall.EPIPE) {
		return nil, nil, controlError(ctx, req.Op, sendErr)
	}
	if req.Op == opLaunch {
		crash.At(crash.LaunchSent)
	}
	// One that refuses us may have said why before it hung up.
	var r reply
	got, pid, err := receiveFrom(c, &r)
	if err != nil {
		return nil, nil, controlError(ctx, req.Op, cmp.Or(sendErr, err))
	}
	r.pid = pid
	if r.Error != "" {
		closeAll(got)
		return nil, nil, errors.New(r.Error)
	}
	return &r, got, nil
}

func controlError(ctx context.Context, op operation, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("VM supervisor, %s: %w", op, err)
}

func dialControl(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("reach the VM's supervisor: %w", err)
	}
	u := c.(*net.UnixConn)
	if err := seqpacket.AskForSender(u); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// peerUID returns the uid of the process at the other end.
func peerUID(c *net.UnixConn) (uint32, error) {
	cred, err := seqpacket.Peer(c)
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
