package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/client/bus"
	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

// A house stands in for both services and one container: its vshd is real,
// and dials the socket that the concierge gave out.
type house struct {
	t       *testing.T
	dir     string
	workers sync.WaitGroup
	ctx     context.Context

	mu       sync.Mutex
	sockets  map[uint32]string
	sent     []*os.File
	sessions map[int32]int32 // of vsh, to those of shells; cleared ones are 0
	noted    chan [2]int32   // registrations, in their order
}

// ListenVsock is the concierge's.
func (h *house) ListenVsock(vm, owner string, port uint32) (dbus.UnixFD, uint32, *dbus.Error) {
	if vm == "kernel" {
		return -1, 0, dbus.NewError("io.github.auberge_vm.Error.Failed", []any{"unsupported operation with kernel vsock, where all VMs share the host's ports"})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	port = 20000 + uint32(len(h.sockets))
	path := filepath.Join(h.dir, strconv.Itoa(int(port)))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return -1, 0, dbus.MakeFailedError(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return -1, 0, dbus.MakeFailedError(err)
	}
	h.sockets[port] = path
	h.sent = append(h.sent, f)
	return dbus.UnixFD(f.Fd()), port, nil
}

// A keeper is the cicerone's face, whose methods take and return bytes.
type keeper struct{ *house }

func (k keeper) LaunchVshd(b []byte) ([]byte, *dbus.Error) {
	var req ciceronepb.LaunchVshdRequest
	proto.Unmarshal(b, &req)
	resp := &ciceronepb.LaunchVshdResponse{Success: true, Cid: 33}
	switch req.ContainerName {
	case "stopped":
		resp = &ciceronepb.LaunchVshdResponse{FailureReason: `container "stopped" does not run`}
	case "broken": // an agent that fails is a success with a reason
		resp.FailureReason = "garcon: no such file"
	default:
		h := k.house
		h.mu.Lock()
		path := h.sockets[req.Port]
		h.mu.Unlock()
		conn, err := net.Dial("unix", path)
		if err != nil {
			return nil, dbus.MakeFailedError(err)
		}
		h.workers.Go(func() {
			vshd.New(vshd.WithLogger(slog.New(slog.DiscardHandler)), vshd.InContainer()).ServeConn(h.ctx, conn)
		})
	}
	out, _ := proto.Marshal(resp)
	return out, nil
}

func (k keeper) RegisterVshSession(b []byte) ([]byte, *dbus.Error) {
	var req ciceronepb.RegisterVshSessionRequest
	proto.Unmarshal(b, &req)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions[req.HostVshPid] = req.ContainerShellPid
	k.noted <- [2]int32{req.HostVshPid, req.ContainerShellPid}
	out, _ := proto.Marshal(&ciceronepb.RegisterVshSessionResponse{Success: true})
	return out, nil
}

func (k keeper) GetVshSession(b []byte) ([]byte, *dbus.Error) {
	var req ciceronepb.GetVshSessionRequest
	proto.Unmarshal(b, &req)
	k.mu.Lock()
	defer k.mu.Unlock()
	pid := k.sessions[req.HostVshPid]
	out, _ := proto.Marshal(&ciceronepb.GetVshSessionResponse{Success: pid != 0, ContainerShellPid: pid})
	return out, nil
}

func startHouse(t *testing.T) (*house, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsh-") // short, for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &house{t: t, dir: dir, ctx: ctx, sockets: map[uint32]string{}, sessions: map[int32]int32{}, noted: make(chan [2]int32, 100)}
	address := startBus(t)
	conn, err := bus.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		h.workers.Wait()
		for _, f := range h.sent {
			f.Close()
		}
		os.RemoveAll(dir)
	})
	for name, face := range map[string][2]any{
		"org.chromium.VmConcierge": {h, "io.github.auberge_vm.Concierge1"}, "org.chromium.VmCicerone": {keeper{h}, "org.chromium.VmCicerone"},
	} {
		path := dbus.ObjectPath("/" + strings.ReplaceAll(name, ".", "/"))
		if err := conn.Export(face[0], path, face[1].(string)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
	}
	return h, address
}

func TestCommandsInAContainer(t *testing.T) {
	h, address := startHouse(t)
	for name, tc := range map[string]struct {
		args             []string
		input, out, errs string
		code             int
		registered       bool
	}{
		"exit code":       {args: []string{"vm", "penguin", "--", "sh", "-c", "echo out; echo err >&2; exit 9"}, out: "out\n", errs: "err\n", code: 9, registered: true},
		"input":           {args: []string{"vm", "--target-container", "penguin", "--", "cat"}, input: "a\nb", out: "a\nb", registered: true},
		"a login shell":   {args: []string{"-T", "vm", "penguin"}, input: "echo $0; exit 4\n", out: "sh\n", code: 4, registered: true},
		"a stopped one":   {args: []string{"vm", "stopped"}, errs: `vsh: cannot connect to container "stopped" of VM "vm": container "stopped" does not run`, code: 123},
		"a broken agent":  {args: []string{"vm", "broken"}, errs: "garcon: no such file", code: 123},
		"kernel vsock":    {args: []string{"kernel", "penguin"}, errs: "shells in containers need vsock = user", code: 123},
		"no such user":    {args: []string{"--user", "no-such-user", "vm", "penguin", "--", "true"}, errs: `no user "no-such-user" in this container`, code: 123},
		"no such command": {args: []string{"vm", "penguin", "--", "no-such-command"}, errs: "no-such-command: command not found", code: 127},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := command(t, address, tc.args...)
			cmd.Env = append(cmd.Env, "SHELL=/bin/sh")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tc.input), &out, &errs
			err := cmd.Run()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			got := cmd.ProcessState.ExitCode()
			if got != tc.code || !strings.HasSuffix(out.String(), tc.out) || !strings.Contains(errs.String(), tc.errs) {
				t.Errorf("code %d, stdout %q, stderr %q; want %d, %q, %q", got, out.String(), errs.String(), tc.code, tc.out, tc.errs)
			}
			if !tc.registered {
				return
			}
			pid := int32(cmd.Process.Pid)
			if first := <-h.noted; first[0] != pid || first[1] <= 0 {
				t.Errorf("registered: %v, want a shell of %d", first, pid)
			}
			if last := <-h.noted; last != [2]int32{pid, 0} {
				t.Errorf("at the end: %v", last)
			}
		})
	}
}

// The process number of another vsh means where that one's shell is; any other
// one is of the container.
func TestDirectoryOfAnotherSession(t *testing.T) {
	h, address := startHouse(t)
	dir := t.TempDir()
	first := command(t, address, "vm", "penguin", "--cwd", dir, "--", "cat")
	in, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	var noted [2]int32
	select {
	case noted = <-h.noted:
	case <-time.After(time.Minute):
		t.Fatal("vsh registers no session")
	}
	for _, pid := range noted {
		out, err := command(t, address, "vm", "penguin", "--cwd", strconv.Itoa(int(pid)), "--", "pwd").Output()
		if err != nil || strings.TrimSpace(string(out)) != dir {
			t.Errorf("in the directory of %d: %q, %v; want %s", pid, out, err, dir)
		}
	}
	in.Close()
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
}

// What carries another protocol, as ssh's does, must come through as it is.
func TestContainerStreamsAreClean(t *testing.T) {
	_, address := startHouse(t)
	data := make([]byte, 1<<20)
	sum := sha256.Sum256([]byte("seed"))
	for i := range data {
		if i%32 == 0 {
			sum = sha256.Sum256(sum[:])
		}
		data[i] = sum[i%32]
	}
	cmd := command(t, address, "vm", "penguin", "--", "cat")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, data) {
		t.Errorf("%d bytes of %d came back, %v", len(out), len(data), err)
	}
}
