package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/auberge-vm/auberge/test/testhost/wire"
	"github.com/auberge-vm/auberge/vmm/qemu"
)

func shareTag(i int) string { return "share" + strconv.Itoa(i) }

// arguments is the hypervisor's command line. One processor: before QEMU 8.1,
// several of an emulated machine cannot run at once safely (see vmm/qemu). And a
// timer that ticks: beside a nested VM, one that is armed for a moment may be lost
// (seen with QEMU 7.2, once in some ten starts), and the machine then sleeps until
// somebody speaks to it. A tick that is lost is followed by another.
func (h *Host) arguments() []string {
	image := h.options.Image
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,hpet=off,vmport=off", "-accel", "tcg,thread=multi,tb-size=512",
		"-cpu", "max,-erms,-fsrm,-cx16", "-smp", "1", "-m", strconv.Itoa(h.options.Memory) + "M",
		"-kernel", filepath.Join(image, "vmlinux"), "-initrd", filepath.Join(image, "initramfs"),
		"-append", "console=ttyS0 quiet loglevel=4 no_timer_check tsc=reliable mitigations=off panic=-1 systemd.getty_auto=no systemd.show_status=no nohz=off highres=off",
		"-chardev", "file,id=console,append=on,path=" + h.Console(), "-device", "isa-serial,chardev=console",
		"-drive", "if=none,id=root,format=qcow2,discard=unmap,file=" + h.disk(), "-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-rng-pci",
		// Before the agent's connection, which says that this one is there too.
		"-chardev", "socket,id=monitor,path=" + h.monitorSocket() + ",server=on,wait=off", "-mon", "chardev=monitor,mode=control",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=" + h.agentSocket(),
		"-device", "virtserialport,chardev=agent,name=" + wire.Port,
	}
	for i, share := range h.options.Shares {
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=%s,security_model=none,multidevs=remap,path=%s", shareTag(i), strings.ReplaceAll(share.Dir, ",", ",,")),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%[1]s,mount_tag=%[1]s", shareTag(i)))
	}
	return args
}

func (h *Host) agentSocket() string   { return filepath.Join(h.dir, "agent") }
func (h *Host) monitorSocket() string { return filepath.Join(h.dir, "monitor") }

// launch starts the hypervisor; it ends with this program.
func (h *Host) launch(ctx context.Context) (*machine, error) {
	os.Remove(h.monitorSocket())
	os.Remove(h.agentSocket())
	listener, err := net.Listen("unix", h.agentSocket())
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	m := &machine{ended: make(chan struct{}), errors: new(bytes.Buffer)}
	m.cmd = exec.Command("qemu-system-x86_64", h.arguments()...)
	m.cmd.Stderr = m.errors
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			m.err = m.cmd.Wait()
			close(m.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := h.connect(ctx, m, listener); err != nil {
		m.kill()
		return nil, fmt.Errorf("the test host's hypervisor does not start: %w: %s", err, m.errors)
	}
	return m, nil
}

// connect takes the hypervisor's connections for the agent and its monitor.
func (h *Host) connect(ctx context.Context, m *machine, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	go func() {
		<-m.ended
		listener.Close()
	}()
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	m.agent = conn
	monitor, err := (qemu.Driver{}).Monitor(ctx, h.monitorSocket())
	if err != nil {
		conn.Close()
		return err
	}
	m.monitor = monitor.(*qemu.Monitor)
	m.client = &http.Client{Transport: wire.Transport(wire.Once(conn))}
	return nil
}

// greet waits for the agent.
func (h *Host) greet(ctx context.Context, m *machine) error {
	conn := m.agent.(net.Conn)
	stop := context.AfterFunc(ctx, func() { m.kill() })
	defer stop()
	line := make([]byte, len(wire.Greeting))
	if _, err := io.ReadFull(conn, line); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("its agent says nothing: %w", err)
	}
	if string(line) != wire.Greeting {
		return fmt.Errorf("its agent says %q", line)
	}
	return nil
}

// kill ends the hypervisor at once and waits for that.
func (m *machine) kill() {
	m.cmd.Process.Kill()
	<-m.ended
}

// release closes what a machine that has ended leaves.
func (m *machine) release() {
	m.client.CloseIdleConnections()
	m.agent.Close()
	m.monitor.Close()
}

// Crash takes the power away.
func (h *Host) Crash() {
	h.mu.Lock()
	m := h.running
	h.running = nil
	h.mu.Unlock()
	if m != nil {
		m.kill()
		m.release()
	}
}

// wait waits for the machine to turn itself off.
func (h *Host) wait(ctx context.Context) error {
	m, err := h.current()
	if err != nil {
		return err
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		return fmt.Errorf("the test host is still on: %w\n%s", context.Cause(ctx), h.tail())
	}
	h.mu.Lock()
	h.running = nil
	h.mu.Unlock()
	m.release()
	if m.err != nil {
		return fmt.Errorf("the test host's hypervisor: %w: %s", m.err, m.errors)
	}
	return nil
}

// PowerOff shuts the machine down as its administrator would.
func (h *Host) PowerOff(ctx context.Context) error {
	return errors.Join(h.Run(ctx, "systemctl", "poweroff", "--no-block"), h.wait(ctx))
}

// Reboot restarts the machine, which keeps its disk.
func (h *Host) Reboot(ctx context.Context) error {
	if err := errors.Join(h.Run(ctx, "systemctl", "reboot", "--no-block"), h.wait(ctx)); err != nil {
		return err
	}
	return h.Start(ctx)
}

// CheckDisk checks the file system of a machine that is off.
func (h *Host) CheckDisk(ctx context.Context) error {
	if _, err := h.current(); err == nil {
		return errors.New("the test host is on: its disk cannot be checked")
	}
	raw := filepath.Join(h.dir, "check")
	defer os.Remove(raw)
	out, err := exec.CommandContext(ctx, "qemu-img", "convert", "-O", "raw", h.disk(), raw).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot read the test host's disk: %w: %s", err, out)
	}
	out, err = exec.CommandContext(ctx, "/sbin/dumpe2fs", "-h", raw).Output()
	if err != nil {
		return fmt.Errorf("cannot read the test host's file system: %w", err)
	}
	if strings.Contains(string(out), "needs_recovery") {
		return errors.New("the test host's file system was not unmounted")
	}
	out, err = exec.CommandContext(ctx, "/sbin/e2fsck", "-fn", raw).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the test host's file system has errors: %w: %s", err, out)
	}
	return nil
}
