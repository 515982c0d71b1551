package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	pb "github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/test/testbed"
	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vmm/qemu"
	"github.com/auberge-vm/auberge/vsock"
)

// benchBoot measures StartVm to its reply against QEMU with the same command
// line, started by hand, until the agent reports.
func benchBoot(ctx context.Context, o *options, t *table) error {
	b, err := o.newBench(ctx, "--accel", o.accel)
	if err != nil {
		return err
	}
	defer b.close()
	const name = "boot"
	// One processor, as the VMs of the end-to-end tests have.
	if err := b.small(name, 1); err != nil {
		return err
	}
	// The first start warms the caches, and tells what a VM is made of.
	if _, err := b.start(name); err != nil {
		return err
	}
	bare, err := b.newBare()
	if err != nil {
		return err
	}
	if err := b.stop(name); err != nil {
		return err
	}
	logged, err := o.log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	p, err := compare(ctx, o.pairs, func() (float64, error) {
		ms, err := timed(func() error {
			_, err := b.start(name)
			return err
		})
		if err != nil {
			return 0, err
		}
		return ms / 1e3, b.stop(name)
	}, func() (float64, error) { return bare.boot(ctx) })
	if err != nil {
		return err
	}
	o.noteStages(t, logged)
	t.ratio("StartVm to its reply", "bare QEMU with the same devices until `VmReady`", "s", p, atMost(1.10))
	return nil
}

// noteStages tells what the starts consist of that the service has logged
// since an offset in its log.
func (o *options) noteStages(t *table, since int64) {
	text, _ := os.ReadFile(o.log.Name())
	text = text[min(since, int64(len(text))):]
	var launch, boot, setup []float64
	for l := range strings.Lines(string(text)) {
		at := map[string]time.Duration{}
		for f := range strings.FieldsSeq(l) {
			name, value, _ := strings.Cut(f, "=")
			if d, err := time.ParseDuration(value); err == nil {
				at[name] = d
			}
		}
		if at["configured"] == 0 {
			continue
		}
		launch = append(launch, at["launched"].Seconds()*1e3)
		boot = append(boot, (at["ready"]-at["launched"]).Seconds()*1e3)
		setup = append(setup, (at["configured"]-at["ready"]).Seconds()*1e3)
	}
	if len(launch) == 0 {
		return
	}
	t.note("StartVm consists of starting the supervisor and its processes (%s ms, median), the guest's boot until `VmReady` (%s ms) and the calls that configure the guest (%s ms).",
		number(median(launch)), number(median(boot)), number(median(setup)))
}

// bare starts QEMU and the vsock backend without a service or a supervisor.
type bare struct {
	spec  vmm.Spec
	image string
	dir   string
	attr  *syscall.SysProcAttr
}

// newBare takes what a VM is made of from the one that is running.
func (b *bench) newBare() (*bare, error) {
	dirs, err := filepath.Glob(filepath.Join(b.RuntimeDir, "vms/*"))
	if err != nil || len(dirs) != 1 {
		return nil, fmt.Errorf("%d VMs run, want 1: %v", len(dirs), err)
	}
	m, err := vmm.Attach(b.ctx, dirs[0])
	if err != nil {
		return nil, err
	}
	defer m.Release()
	if len(m.Spec.Disks) != 1 {
		return nil, fmt.Errorf("the VM has %d disks, want the root alone", len(m.Spec.Disks))
	}
	r := &bare{spec: *m.Spec, image: b.Image, dir: filepath.Join(b.Dir, "bare")}
	if os.Geteuid() == 0 {
		r.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: testbed.VMs.UID, Gid: testbed.VMs.GID}}
	}
	return r, nil
}

// command prepares a program that runs as VMs do.
func (r *bare) prepare(cmd *exec.Cmd) *exec.Cmd {
	cmd.Dir = r.dir
	if r.attr != nil {
		attr := *r.attr
		cmd.SysProcAttr = &attr
	}
	return cmd
}

// boot returns the seconds until VmReady.
func (r *bare) boot(ctx context.Context) (seconds float64, err error) {
	if err := os.Mkdir(r.dir, 0o777); err != nil {
		return 0, err
	}
	defer os.RemoveAll(r.dir)
	if err := os.Chmod(r.dir, 0o777); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()

	begin := time.Now()
	ready, stop, err := r.listen()
	if err != nil {
		return 0, err
	}
	defer stop()
	backend := r.prepare(exec.Command("vhost-device-vsock", "--guest-cid", fmt.Sprint(r.spec.Vsock.CID),
		"--socket", filepath.Join(r.dir, vmm.BackendSocket), "--uds-path", vmm.VsockSocket))
	backendEnded, err := run(backend)
	if err != nil {
		return 0, err
	}
	defer end(backend, backendEnded)
	if err := r.awaitBackend(ctx, backendEnded); err != nil {
		return 0, err
	}
	hyper, files, err := r.hypervisor()
	defer closeAll(files)
	if err != nil {
		return 0, err
	}
	var console strings.Builder
	hyper.Stdout, hyper.Stderr = &console, &console
	hyperEnded, err := run(hyper)
	if err != nil {
		return 0, err
	}
	defer end(hyper, hyperEnded)
	select {
	case <-ready:
		return time.Since(begin).Seconds(), nil
	case <-hyperEnded:
		return 0, fmt.Errorf("bare QEMU ended: %s", console.String())
	case <-ctx.Done():
		return 0, fmt.Errorf("bare QEMU: %w", context.Cause(ctx))
	}
}

// run starts a command and returns a channel that closes with its end.
func run(cmd *exec.Cmd) (<-chan struct{}, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return ended, nil
}

func end(cmd *exec.Cmd, ended <-chan struct{}) {
	cmd.Process.Kill()
	<-ended
}

// hypervisor makes QEMU's command with the driver of the supervisor.
func (r *bare) hypervisor() (*exec.Cmd, []*os.File, error) {
	names := map[vmm.File]string{
		r.spec.Kernel: "vmlinux", r.spec.Initrd: "initramfs.cpio", r.spec.Disks[0].File: "rootfs.squashfs",
	}
	var files []*os.File
	for i := range len(names) {
		f, err := os.Open(filepath.Join(r.image, names[vmm.File(i)]))
		if err != nil {
			return nil, files, err
		}
		files = append(files, f)
	}
	monitor, err := listen(filepath.Join(r.dir, "monitor.sock"))
	if err != nil {
		return nil, files, err
	}
	defer monitor.Close()
	f, err := monitor.File()
	if err != nil {
		return nil, files, err
	}
	cmd, err := qemu.Driver{}.Command(&r.spec, files, f)
	files = append(files, f)
	if err != nil {
		return nil, files, err
	}
	return r.prepare(cmd), files, nil
}

// listen hears the guest's VmReady.
func (r *bare) listen() (ready <-chan struct{}, stop func(), err error) {
	l, err := listen(vsock.EndpointPath(filepath.Join(r.dir, vmm.VsockSocket), vsock.PortStartupListener))
	if err != nil {
		return nil, nil, err
	}
	heard := make(chan struct{}, 1)
	server := grpc.NewServer()
	pb.RegisterStartupListenerServer(server, hearReady{heard: heard})
	go server.Serve(net.Listener(l))
	return heard, server.Stop, nil
}

type hearReady struct {
	pb.UnimplementedStartupListenerServer
	heard chan<- struct{}
}

func (h hearReady) VmReady(context.Context, *pb.EmptyMessage) (*pb.EmptyMessage, error) {
	select {
	case h.heard <- struct{}{}:
	default:
	}
	return &pb.EmptyMessage{}, nil
}

// awaitBackend waits until the backend's socket listens. It takes one
// connection only, so that one cannot just try.
func (r *bare) awaitBackend(ctx context.Context, ended <-chan struct{}) error {
	path := filepath.Join(r.dir, vmm.BackendSocket)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			const acceptFlag = "00010000" // __SO_ACCEPTCON
			if f := strings.Fields(l); len(f) >= 8 && f[3] == acceptFlag && f[7] == path {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ended:
			return errors.New("the vsock backend ended at once")
		case <-ctx.Done():
			return fmt.Errorf("the vsock backend does not listen: %w", context.Cause(ctx))
		}
	}
}
