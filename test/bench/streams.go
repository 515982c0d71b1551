package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/vmm"
	"github.com/auberge-vm/auberge/vsock"
)

const (
	// plainPort is where the guest program of the benchmark listens.
	plainPort = 6000
	// bulk is how much goes through a stream at a time, in bytes.
	bulk = 64 << 20
	// guestProgram is where that program lies in the guest.
	guestProgram = "/tmp/bench-guest"
)

// benchStreams measures sessions against plain streams to a program in the
// same guest, and memory while there is a VM.
func benchStreams(ctx context.Context, o *options, t *table) error {
	b, err := o.newBench(ctx, "--accel", o.accel)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.memoryIdle(t); err != nil {
		return err
	}
	s := &streams{bench: b, vm: "streams"}
	if err := b.small(s.vm, 0); err != nil {
		return err
	}
	if _, err := b.start(s.vm); err != nil {
		return err
	}
	if err := b.memoryOfVM(s, t); err != nil {
		return err
	}
	stop, err := s.prepare(o.bin)
	if err != nil {
		return err
	}
	defer stop()
	p, err := compare(ctx, o.pairs, s.sessionTrue, s.plainEcho)
	if err != nil {
		return err
	}
	t.ratio("`vsh -- true`", "plain stream, one line echoed", "ms", p, none)
	for _, way := range []struct {
		what        string
		vsh, stream func() (float64, error)
	}{
		{"vsh, 64 MiB to the guest", s.sessionTake, s.plainTake},
		{"vsh, 64 MiB from the guest", s.sessionGive, s.plainGive},
	} {
		p, err := compare(ctx, o.pairs, way.vsh, way.stream)
		if err != nil {
			return err
		}
		t.ratio(way.what, "plain stream", "MB/s", p, atLeast(0.6))
	}
	stop()
	return b.stop(s.vm)
}

// streams is a running VM with the benchmark's program in it.
type streams struct {
	*bench
	vm     string
	socket string // where the host dials the guest
	zeros  string // a file of bulk bytes
}

// session prepares a vsh that runs a command in the VM.
func (s *streams) session(command ...string) *exec.Cmd {
	cmd := s.Command(s.user, "vsh", append([]string{s.vm, "--"}, command...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// prepare brings the program into the guest and starts it.
func (s *streams) prepare(bin string) (stop func(), err error) {
	sockets, err := filepath.Glob(filepath.Join(s.RuntimeDir, "vms/*", vmm.VsockSocket))
	if err != nil || len(sockets) != 1 {
		return nil, fmt.Errorf("%d VMs have a socket, want 1: %v", len(sockets), err)
	}
	s.socket = sockets[0]
	s.zeros = filepath.Join(s.Dir, "zeros")
	if err := os.WriteFile(s.zeros, make([]byte, bulk), 0o644); err != nil {
		return nil, err
	}
	program, err := os.Open(filepath.Join(bin, "bench/guest"))
	if err != nil {
		return nil, err
	}
	defer program.Close()
	put := s.session("sh", "-c", "cat >"+guestProgram+" && chmod 755 "+guestProgram)
	put.Stdin = program
	if err := put.Run(); err != nil {
		return nil, fmt.Errorf("put a program into the guest: %w", err)
	}
	// /dev/vsock is root's, which says what CID one has.
	run := s.Command(s.user, "vsh", "--user", "root", s.vm, "--", guestProgram, "serve", fmt.Sprint(plainPort))
	run.Stderr = os.Stderr
	out, err := run.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := run.Start(); err != nil {
		return nil, err
	}
	stop = sync.OnceFunc(func() {
		run.Process.Signal(syscall.SIGTERM)
		run.Wait()
		os.Remove(s.zeros)
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		stop()
		return nil, fmt.Errorf("the program in the guest did not start: %w", err)
	}
	return stop, nil
}

// timed runs f and returns milliseconds.
func timed(f func() error) (float64, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin).Seconds() * 1e3, err
}

// rate runs f, which moves bulk bytes, and returns MB/s.
func rate(f func() error) (float64, error) {
	ms, err := timed(f)
	return bulk / 1e3 / ms, err
}

func (s *streams) sessionTrue() (float64, error) {
	return timed(s.session("true").Run)
}

// plain opens a stream to the program in the guest and says what it is for.
func (s *streams) plain(line string) (*vsock.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	c, err := vsock.DialUser(ctx, s.socket, vsock.Addr{VM: s.vm, Port: plainPort})
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(callTimeout))
	if _, err := io.WriteString(c, line); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// answered reads a line that has to be the one expected.
func answered(r io.Reader, want string) error {
	got, err := bufio.NewReader(r).ReadString('\n')
	if err == nil && got != want {
		err = fmt.Errorf("the guest answered %q, not %q", got, want)
	}
	return err
}

func (s *streams) plainEcho() (float64, error) {
	return timed(func() error {
		const line = "one line\n"
		c, err := s.plain(line)
		if err != nil {
			return err
		}
		defer c.Close()
		return answered(c, line)
	})
}

func (s *streams) plainTake() (float64, error) {
	return rate(func() error {
		c, err := s.plain(fmt.Sprintf("take %d\n", bulk))
		if err != nil {
			return err
		}
		defer c.Close()
		f, err := os.Open(s.zeros)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{f}, make([]byte, 64<<10)); err != nil {
			return err
		}
		return answered(c, "taken\n")
	})
}

func (s *streams) plainGive() (float64, error) {
	return rate(func() error {
		c, err := s.plain(fmt.Sprintf("give %d\n", bulk))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.CopyN(io.Discard, c, bulk)
		return err
	})
}

func (s *streams) sessionTake() (float64, error) {
	f, err := os.Open(s.zeros)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	cmd := s.session(guestProgram, "take")
	cmd.Stdin = f
	return rate(cmd.Run)
}

func (s *streams) sessionGive() (float64, error) {
	cmd := s.session(guestProgram, "give", fmt.Sprint(bulk))
	var n counter
	cmd.Stdout = &n
	r, err := rate(cmd.Run)
	if err == nil && n != bulk {
		err = fmt.Errorf("%d bytes of %d came through the session", n, bulk)
	}
	return r, err
}

// A counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// memoryIdle tells what the service takes with nothing to do.
func (b *bench) memoryIdle(t *table) error {
	kib, err := pss(b.concierge.Cmd.Process.Pid)
	if err != nil {
		return err
	}
	t.figure("vm_concierge without VMs, PSS", "MiB", kib/1024, atMost(30))
	return nil
}

// memoryOfVM tells what a VM takes besides its hypervisor.
func (b *bench) memoryOfVM(s *streams, t *table) error {
	supervisor := 0
	for _, pid := range b.Processes() {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(comm)) == "auberge-vm" {
			supervisor = pid
		}
	}
	if supervisor == 0 {
		return errors.New("the VM's supervisor is not found")
	}
	kib, err := pss(supervisor)
	if err != nil {
		return err
	}
	t.figure("auberge-vm (the supervisor) with its VM running, PSS", "MiB", kib/1024, atMost(15))
	cmd := s.Command(s.user, "vsh", "--user", "root", s.vm, "--", "cat", "/proc/1/smaps_rollup")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ask the guest for maitred's memory: %w", err)
	}
	if kib, err = parsePSS(string(out)); err != nil {
		return err
	}
	t.figure("maitred in the guest, PSS", "MiB", kib/1024, atMost(16))
	return nil
}
