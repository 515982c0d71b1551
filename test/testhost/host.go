package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/auberge-vm/auberge/vmm/qemu"
)

// A Share is a directory of this machine that the host has mounted.
type Share struct {
	Dir    string // here
	Target string // there
}

// Options say what host is wanted. The zero value will do.
type Options struct {
	Image  string  // what packaging/testhost/build.sh printed; empty runs it
	Shares []Share // mounted at every boot
	Memory int     // MiB; 0 is 3072
	Log    func(format string, args ...any)
}

// A Host is a machine. Its methods may be called by several goroutines, those
// that start or end it by one at a time.
type Host struct {
	options Options
	dir     string // of this machine: its disk, sockets, console

	mu      sync.Mutex
	running *machine
}

// machine is one run of the hypervisor, from power on to power off or reset.
type machine struct {
	cmd     *exec.Cmd
	monitor *qemu.Monitor
	client  *http.Client
	agent   interface{ Close() error }
	ended   chan struct{} // the hypervisor is gone
	err     error         // how it ended, once ended is closed
	errors  *bytes.Buffer // what it said, once ended is closed
}

// Image builds the image, or finds it in the cache.
func Image(ctx context.Context) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "packaging/testhost/build.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	lines := strings.Fields(string(out))
	if err != nil || len(lines) == 0 {
		return "", fmt.Errorf("cannot build the test host: %w", err)
	}
	return lines[len(lines)-1], nil
}

// repository is where this file was compiled from.
func repository() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", fmt.Errorf("cannot find the repository (was this built with -trimpath?): %w", err)
	}
	return root, nil
}

// New makes a host, that is its disk; Start starts it.
func New(ctx context.Context, o Options) (*Host, error) {
	if o.Image == "" {
		image, err := Image(ctx)
		if err != nil {
			return nil, err
		}
		o.Image = image
	}
	if o.Memory == 0 {
		o.Memory = 3072
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	dir, err := os.MkdirTemp("", "testhost")
	if err != nil {
		return nil, err
	}
	h := &Host{options: o, dir: dir}
	// The cached disk is only read.
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
		"-b", filepath.Join(o.Image, "disk"), h.disk()).CombinedOutput()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make the test host's disk: %w: %s", err, out), h.Close())
	}
	return h, nil
}

func (h *Host) disk() string { return filepath.Join(h.dir, "disk.qcow2") }

// Console is the file with what the machine has written to its serial console.
func (h *Host) Console() string { return filepath.Join(h.dir, "console") }

// Boot makes a host and starts it.
func Boot(ctx context.Context, o Options) (*Host, error) {
	h, err := New(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := h.Start(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Start turns the machine on and returns when systemd says that it is up.
func (h *Host) Start(ctx context.Context) error {
	began := time.Now()
	m, err := h.launch(ctx)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.running = m
	h.mu.Unlock()
	if err := h.greet(ctx, m); err != nil {
		return fmt.Errorf("the test host does not start: %w\n%s", err, h.tail())
	}
	h.options.Log("test host: the agent is there after %.1f s", time.Since(began).Seconds())
	for i, share := range h.options.Shares {
		err := h.Run(ctx, "sh", "-c", `mkdir -p "$2" && mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none "$1" "$2"`,
			"sh", shareTag(i), share.Target)
		if err != nil {
			return fmt.Errorf("cannot mount %s: %w", share.Dir, err)
		}
	}
	// "degraded" is an exit code of its own, and somebody's test may be why.
	state, err := h.Output(ctx, "sh", "-c", "systemctl is-system-running --wait || true")
	if err != nil {
		return err
	}
	h.options.Log("test host: %s after %.1f s", strings.TrimSpace(state), time.Since(began).Seconds())
	if s := strings.TrimSpace(state); s != "running" && s != "degraded" {
		return fmt.Errorf("the test host is %q after its start\n%s", s, h.tail())
	}
	return nil
}

// tail is the end of the console, for an error.
func (h *Host) tail() string {
	content, _ := os.ReadFile(h.Console())
	return string(content[max(0, len(content)-4096):])
}

// current is the machine that runs.
func (h *Host) current() (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.running == nil {
		return nil, errors.New("the test host is off")
	}
	return h.running, nil
}

// Close takes the host and its disk away.
func (h *Host) Close() error {
	h.Crash()
	return os.RemoveAll(h.dir)
}
