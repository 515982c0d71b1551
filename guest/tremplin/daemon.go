package tremplin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	"golang.org/x/sys/unix"
)

// Pauses before incusd is started again.
const (
	restartPauseMin = 200 * time.Millisecond
	restartPauseMax = 10 * time.Second
	restartCalm     = 20 * time.Second // having run so long, it has no history
)

// stopGrace is how long incusd may take to end before it is killed.
const stopGrace = 10 * time.Second

// A daemon keeps incusd running. One that an earlier tremplin has left behind
// is taken over, for it has containers.
type daemon struct {
	cfg    Config
	log    *slog.Logger
	client *incus.Client

	mu      sync.Mutex
	keeping *keeping // nil while incusd is not wanted
	closed  bool
}

// A keeping is one span of time in which incusd is wanted.
type keeping struct {
	end  context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	process *process
	failure error // why it cannot be started at all
}

// A process is an incusd.
type process struct {
	pid  int
	os   *os.Process
	done chan struct{}
	how  string // set before done is closed
}

// start sees to it that incusd runs, and returns when it answers.
func (d *daemon) start(ctx context.Context) error {
	d.mu.Lock()
	k := d.keeping
	if d.closed {
		d.mu.Unlock()
		return errors.New("the VM is shutting down")
	}
	if k == nil {
		keep, end := context.WithCancel(context.Background())
		k = &keeping{end: end, done: make(chan struct{})}
		d.keeping = k
		go d.keep(keep, k)
	}
	d.mu.Unlock()
	if err := d.client.WaitReady(ctx); err != nil {
		if why := k.why(); why != nil {
			return fmt.Errorf("Incus does not start: %w", why)
		}
		return fmt.Errorf("Incus does not become ready: %w", err)
	}
	return nil
}

// stop ends incusd with a signal, and returns when it is gone. With SIGPWR,
// incusd stops its containers before.
func (d *daemon) stop(sig unix.Signal, grace time.Duration) {
	d.mu.Lock()
	k := d.keeping
	d.keeping = nil
	d.mu.Unlock()
	var p *process
	if k != nil {
		k.end()
		<-k.done
		p = k.current()
	}
	if p == nil {
		// One of an earlier tremplin, which was not found yet.
		if pid := d.leftBehind(); pid > 0 {
			p, _ = d.takeOver(pid)
		}
	}
	if p == nil {
		return
	}
	p.os.Signal(sig)
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		d.log.Warn("Incus did not end in time, killing it", "pid", p.pid, "grace", grace)
		p.os.Kill()
		<-p.done
	}
}

func (k *keeping) why() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failure
}

func (k *keeping) current() *process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.process
}

func (k *keeping) set(p *process, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.process, k.failure = p, err
}

// release leaves incusd running, and unwatched.
func (d *daemon) release() {
	d.mu.Lock()
	k := d.keeping
	d.keeping, d.closed = nil, true
	d.mu.Unlock()
	if k != nil {
		k.end()
		<-k.done
	}
}

// close lets incusd start no more.
func (d *daemon) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
}

// keep runs incusd again and again.
func (d *daemon) keep(ctx context.Context, k *keeping) {
	defer close(k.done)
	pause := restartPauseMin
	for ctx.Err() == nil {
		begun := time.Now()
		p, err := d.find(ctx)
		if ctx.Err() != nil && p == nil {
			return // what was looked for may run all the same
		}
		if err == nil && p == nil {
			p, err = d.launch()
		}
		k.set(p, err)
		if err == nil {
			select {
			case <-p.done:
				k.set(nil, fmt.Errorf("incusd ended: %s", p.how))
				d.log.Error("Incus ended, starting it again", "pid", p.pid, "end", p.how)
			case <-ctx.Done():
				return
			}
		} else if ctx.Err() == nil {
			d.log.Error("Incus does not start", "err", err)
		}
		if time.Since(begun) > restartCalm {
			pause = restartPauseMin
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
		pause = min(2*pause, restartPauseMax)
	}
}

// find returns the incusd that runs already, or nil.
func (d *daemon) find(ctx context.Context) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pid := 0
	if s, err := d.client.Server(ctx); err == nil {
		pid = s.Environment.PID
	}
	if pid <= 0 {
		pid = d.leftBehind()
	}
	if pid <= 0 {
		return nil, nil
	}
	return d.takeOver(pid)
}

// takeOver watches an incusd that is not our child. It returns nil when that
// has ended.
func (d *daemon) takeOver(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, nil
	}
	found, err := os.FindProcess(pid)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	p := &process{pid: pid, os: found, done: make(chan struct{}), how: "it was another's child"}
	d.log.Info("Incus runs already", "pid", pid)
	go func() {
		defer close(p.done)
		defer unix.Close(fd)
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return p, nil
}

// incusdArgs are the first arguments of an incusd; its helpers have others.
var incusdArgs = []string{"--group", "root"}

// launch starts incusd in a session of its own, so that it and the containers
// outlive us.
func (d *daemon) launch() (*process, error) {
	if err := os.MkdirAll(d.cfg.IncusDir, 0o711); err != nil {
		return nil, err
	}
	args := slices.Clone(incusdArgs)
	if _, err := os.Stat("/dev/log"); err == nil {
		args = append(args, "--syslog")
	}
	cmd := exec.Command(d.cfg.Incusd, args...)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "INCUS_DIR=" + d.cfg.IncusDir,
		// Nothing is asked of its project's server: nobody names these types.
		"INCUS_SKIP_INSTANCE_TYPES=true",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A pipe of ours would break when we end, and incusd with it.
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d.log.Info("Incus started", "pid", cmd.Process.Pid)
	p := &process{pid: cmd.Process.Pid, os: cmd.Process, done: make(chan struct{})}
	go func() {
		cmd.Wait()
		p.how = cmd.ProcessState.String()
		close(p.done)
	}()
	return p, nil
}

// setDatabaseAside makes incusd, which must not run, begin with no memory.
func (d *daemon) setDatabaseAside() (back func() error, err error) {
	dir := filepath.Join(d.cfg.IncusDir, "database")
	old := dir + ".old"
	if _, err := os.Lstat(dir); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(old); err != nil {
		return nil, err
	}
	if err := os.Rename(dir, old); err != nil {
		return nil, err
	}
	return func() error {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return os.Rename(old, dir)
	}, nil
}
